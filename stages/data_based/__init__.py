"""data_based: meta-training on *real* images: a control and the ceilings, labelled so."""
