//! One test for each program of `tests/linux-bins/`, way of building it, and set of arguments.

use hx_tests::{
    expected::ExpectedFailures,
    outcome::Input,
    source::{Source, Variant},
};
use libtest_mimic::Trial;

use crate::host::{Task, compare};

pub(crate) fn trials(expected: &ExpectedFailures) -> Result<Vec<Trial>, String> {
    let mut trials = Vec::new();
    for source in Source::all()? {
        for variant in &source.variants {
            for (case, arguments) in &source.cases {
                let dash = if case.is_empty() { "" } else { "-" };
                let name = format!("linux-bins::{}{dash}{case}::{}", source.name, variant.name);
                let cpus = source.cpus.iter().map(|cpus| Some(*cpus));
                let cpus = if source.cpus.is_empty() { vec![None] } else { cpus.collect() };
                for cpus in cpus {
                    let name = cpus.map_or(name.clone(), |cpus| format!("{name}-{cpus}"));
                    let (source, variant) = (source.clone(), *variant);
                    let arguments = arguments.clone();
                    trials.push(expected.trial(name, move || {
                        let mut task = task(&source, variant, &arguments)?;
                        if let Some(cpus) = cpus {
                            task.options.extend(["--cpus".to_owned(), cpus.to_string()]);
                        }
                        compare(&task)
                    }));
                }
            }
        }
    }
    Ok(trials)
}

fn task(source: &Source, variant: Variant, arguments: &[String]) -> Result<Task, String> {
    let program = source.build(variant)?;
    let path = program.path.to_string_lossy().into_owned();
    let mut task = Task::new([path].into_iter().chain(arguments.iter().cloned()));
    task.env.clone_from(&source.env);
    task.options.clone_from(&source.hermit_run);
    task.timeout = source.timeout;
    if let Some(line) = &source.stdin {
        task.input = Input::Bytes(line.clone().into_bytes());
    }
    if let Some(library) = program.library {
        let library = library.to_string_lossy().into_owned();
        task.options.extend(["--volume".to_owned(), format!("{library}:{library}")]);
        task.env.push(("TEST_LIBRARY".to_owned(), library));
    }
    Ok(task)
}
