//! Everything a person does to the project: test, bench, conformance.

fn main() {}
