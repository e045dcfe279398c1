"""Reading results back: the streams of the archive, an index of them, and the bytes on the wire."""
