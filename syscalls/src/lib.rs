#![no_std]
//! Placeholder until its room is built.
