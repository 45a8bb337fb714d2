"""The one training piece: plain functions on modules and rows, used by fine-tuning, distillation and recovery alike.

`rows` turns text into training rows, `teacher` supplies what a teacher says about them, `objective` builds the loss,
and `train` runs `transformers.Trainer` with it.
"""
