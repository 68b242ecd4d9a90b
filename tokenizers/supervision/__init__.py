"""Terms that teach an image tokenizer, one file each, behind one contract (`contract.py`)."""
