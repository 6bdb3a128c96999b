"""pseudo: a pool without a data set -> images of its own classes, in a data set's place."""
