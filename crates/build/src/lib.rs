//! Recipes to images: the parsers, the build graph, its cache, and the Debian bootstrap.
