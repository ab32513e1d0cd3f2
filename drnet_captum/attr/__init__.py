"""The attribution classes, one file a family. Each is a thin reader of a tape."""
