//! Several measurements of one thing.

use std::fmt;

use anyhow::{Result, bail};
use serde::Serialize;

/// Measurements by rank, in the unit that the field's name says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) least: f64,
    pub(crate) lower_quartile: f64,
    pub(crate) median: f64,
    pub(crate) upper_quartile: f64,
    pub(crate) most: f64,
    /// In the order in which they were made.
    pub(crate) all: Vec<f64>,
}

impl Summary {
    /// Of at least one measurement.
    ///
    /// # Errors
    /// Where there is none.
    pub(crate) fn new(all: Vec<f64>) -> Result<Self> {
        let mut sorted = all.clone();
        sorted.sort_by(f64::total_cmp);
        let (Some(least), Some(most)) = (sorted.first(), sorted.last()) else {
            bail!("no rounds, no result");
        };
        // Between the two nearest ranks where the share falls between them.
        let at = |share: f64| {
            let rank = share * (sorted.len() - 1) as f64;
            let (below, above) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
            below + (above - below) * rank.fract()
        };
        Ok(Self {
            least: *least,
            lower_quartile: at(0.25),
            median: at(0.5),
            upper_quartile: at(0.75),
            most: *most,
            all,
        })
    }
}

/// Cells of a table row: least, lower quartile, median, upper quartile, most, count.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { least, lower_quartile, median, upper_quartile, most, all } = self;
        write!(
            f,
            "{least:.0} | {lower_quartile:.0} | {median:.0} | {upper_quartile:.0} | {most:.0} | {}",
            all.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_found() {
        assert_eq!(Summary::new(vec![9.0, 1.0, 5.0]).unwrap().median, 5.0);
        let four = Summary::new(vec![9.0, 1.0, 5.0, 6.0]).unwrap();
        assert_eq!((four.least, four.median, four.most), (1.0, 5.5, 9.0));
        assert_eq!((four.lower_quartile, four.upper_quartile), (4.0, 6.75));
        assert!(Summary::new(vec![]).is_err());
    }
}
