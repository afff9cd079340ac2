"""From the files people have to rows, and from rows to token ids.

Readers, adapters of known data sets, tokenisation and splits by prompt. What a stage does with the rows is not here.
"""
