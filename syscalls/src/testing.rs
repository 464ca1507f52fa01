//! A platform on the host, for tests.
