"""Loading and saving: the files of a checkpoint folder and the key tables of foreign formats."""
