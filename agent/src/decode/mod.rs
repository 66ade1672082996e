//! Decode: from a frame to records. Pure: bytes and the time of receipt in, records out.
