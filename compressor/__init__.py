"""Model compression judged by energy."""
