//! The area tree against a model of single pages.
