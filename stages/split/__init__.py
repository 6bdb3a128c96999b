"""split: any accepted source of a data set -> one canonical file per data set."""
