"""Published image tokenizers, each a function that returns a training at its published size or at mini size."""
