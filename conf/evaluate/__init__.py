"""Configuration of evaluation, apart from the training groups: here ``task`` is a plain value."""
