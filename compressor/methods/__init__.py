"""Pure tensor maths: modules and tensors in, modules and tensors out; no path, no config object, no logger."""
