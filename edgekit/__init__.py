"""edgekit takes a trained model and turns it into files that run, small and fast, on phones and edge devices."""
