//! The `isles` program.

fn main() {}
