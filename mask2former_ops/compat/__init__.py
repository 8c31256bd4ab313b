"""The ops under the names, signatures and defaults of other code bases, one file for each.

No file imports the code base that it is named after.
"""
