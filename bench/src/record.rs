//! Figures, and the lines in which programs print them.

use serde::Serialize;

/// One figure: what one run says of one operation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Figure {
    /// The suite, where the program says it.
    pub(crate) suite: Option<String>,
    /// The operation, in LMbench's terms where it has it.
    pub(crate) name: String,
    /// What is counted, or why there is no figure.
    pub(crate) value: Result<Value, String>,
}

/// A number with its unit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Value {
    pub(crate) number: f64,
    pub(crate) unit: String,
}

impl Figure {
    /// A figure of `number` `unit`s.
    pub(crate) fn new(name: impl Into<String>, number: f64, unit: &str) -> Self {
        Self { suite: None, name: name.into(), value: Ok(Value { number, unit: unit.into() }) }
    }
}

/// Whether more of this unit is better.
pub(crate) fn more_is_better(unit: &str) -> bool {
    unit.ends_with("/s") || unit == "guests"
}

/// What `bench/micro/micro.c` printed, and whether it came to its end. Lines that are no records are
/// somebody else's: the console of a Linux guest carries its kernel's messages as well.
pub(crate) fn parse(text: &str) -> (Vec<Figure>, bool) {
    let records = text.lines().filter_map(|line| line.trim().strip_prefix("@ "));
    let mut is_complete = false;
    let mut figures = Vec::new();
    let mut suite = None;
    for record in records {
        if record == "end" {
            is_complete = true;
        } else if let Some(name) = record.strip_prefix("suite ") {
            suite = Some(name.to_owned());
        }
        let Some((name, rest)) = record.split_once(": ") else { continue };
        let Some((unit, rest)) = rest.split_once(' ') else { continue };
        if unit == "error" {
            let value = Err(rest.into());
            figures.push(Figure { suite: suite.clone(), name: name.into(), value });
        } else if let Some(number) =
            rest.split(' ').next().and_then(|word| word.parse::<f64>().ok())
            && number.is_finite()
        {
            figures.push(Figure { suite: suite.clone(), ..Figure::new(name, number, unit) });
        }
    }
    (figures, is_complete)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_among_other_lines() {
        let text = "[ 0.5] usb: noise\r\n@ lat_ctx 2/0K: ns 12.50 12.00 13.00 7\r\n\
                    @ lat_proc sh: error /bin/busybox: No such file\n@ bw_pipe: MB/s 3 2 4 9\n";
        let (figures, is_complete) = parse(text);
        assert!(!is_complete);
        assert_eq!(figures[0], Figure::new("lat_ctx 2/0K", 12.5, "ns"));
        assert_eq!(figures[1].value, Err("/bin/busybox: No such file".into()));
        assert_eq!(figures[2], Figure::new("bw_pipe", 3.0, "MB/s"));
        assert!(parse("@ end\r\n").1);
        let (figures, _) = parse("@ a: ns 1\n@ suite calls\n@ b: ns 2\n");
        assert_eq!((&figures[0].suite, &figures[1].suite), (&None, &Some("calls".into())));
    }

    #[test]
    fn what_is_no_number_is_no_figure() {
        assert_eq!(parse("@ x: ns inf 1\n@ y: ns\n@ z 1 2\n@ w: ns NaN 1\n"), (Vec::new(), false));
    }

    #[test]
    fn rates_grow_and_times_shrink() {
        assert!(more_is_better("MB/s") && more_is_better("1/s") && more_is_better("guests"));
        assert!(!more_is_better("ns") && !more_is_better("KiB"));
    }
}
