"""What a sweep measured: points, the file they are kept in, and what lies between them."""
