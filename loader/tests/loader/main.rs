//! Tests of the loader against fixtures, against the host's programs, and against the host's Linux.

mod fixture;
mod host;
mod malformed;
mod mutation;
mod plan;
mod scripts;
mod stack;
