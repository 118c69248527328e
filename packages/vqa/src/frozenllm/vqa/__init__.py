"""Vision and language with a frozen language-model block: question answering and retrieval, on transformers."""
