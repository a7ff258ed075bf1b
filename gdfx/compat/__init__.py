"""What code written for other libraries needs to run with gdfx."""
