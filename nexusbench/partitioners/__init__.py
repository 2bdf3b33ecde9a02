"""Who sizes the partitions, one file each."""
