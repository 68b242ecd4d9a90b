"""Encoders, one file each, behind one contract (`contract.py`)."""
