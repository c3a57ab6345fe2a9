//! Tar archives (POSIX.1-2024 pax, ustar, GNU): a reader that copies nothing and a deterministic writer.
