"""meta_test: snapshots + data set -> accuracies on 600 unseen few-shot episodes."""
