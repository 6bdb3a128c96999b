"""pretrain: data set (meta-train classes) -> a pool of trained teachers."""
