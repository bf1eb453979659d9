"""The literature made runnable: one technique a file, under the area and family the catalog gives it."""
