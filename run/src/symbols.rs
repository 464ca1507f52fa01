//! Names for the addresses in a kernel's last words.
//!
//! The guest sends its backtrace as addresses, `[<ffffffff80123456>]`; the kernel's ELF file, which
//! is here on the host, knows the functions and lines.

use std::{fmt::Write as _, path::Path};

/// `text` with the function, file and line after each kernel address; as it is where the kernel's
/// file does not tell.
pub(crate) fn annotate(text: &str, kernel: &Path) -> String {
    if !text.contains("[<") {
        return text.to_owned();
    }
    let Ok(loader) = addr2line::Loader::new(kernel) else { return text.to_owned() };
    let mut annotated = String::new();
    for line in text.lines() {
        if !annotated.is_empty() {
            annotated.push('\n');
        }
        annotated.push_str(line);
        let address = line.split_once("[<").and_then(|(_, rest)| rest.split_once(">]"));
        let address = address.and_then(|(digits, _)| u64::from_str_radix(digits, 16).ok());
        if let Some(address) = address {
            describe(&loader, address, &mut annotated);
        }
    }
    annotated
}

fn describe(loader: &addr2line::Loader, address: u64, into: &mut String) {
    // A return address is that of the next instruction: the call is before it.
    let call = address.saturating_sub(1);
    // The symbol has the whole path of the name, line tables alone its last part.
    let symbol = loader.find_symbol(call).map(|name| addr2line::demangle_auto(name.into(), None));
    let Ok(mut frames) = loader.find_frames(call) else { return };
    let mut next = frames.next();
    let mut found = false;
    while let Ok(Some(frame)) = next {
        next = frames.next();
        let is_outermost = matches!(next, Ok(None));
        let own = frame.function.as_ref().and_then(|function| function.demangle().ok());
        let Some(name) = symbol.clone().filter(|_| is_outermost).or(own) else { continue };
        let separator = if found { "\n      inlined into " } else { " " };
        let _ = write!(into, "{separator}{name}");
        if let Some(location) = frame.location
            && let (Some(file), Some(line)) = (location.file, location.line)
        {
            let _ = write!(into, " ({file}:{line})");
        }
        found = true;
    }
    if !found && let Some(name) = symbol {
        let _ = write!(into, " {name}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_get_names_and_other_text_stays() {
        // This test's own executable stands for the kernel.
        let path = std::env::current_exe().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let elf = goblin::elf::Elf::parse(&bytes).unwrap();
        let symbol = elf
            .syms
            .iter()
            .find(|symbol| {
                elf.strtab.get_at(symbol.st_name).is_some_and(|name| name.contains("annotate"))
                    && symbol.st_size > 8
            })
            .expect("the function under test is in the executable");
        let text = format!("kernel panic: a test\n  at [<{:016x}>]\nthe end", symbol.st_value + 4);
        let annotated = annotate(&text, &path);
        assert!(annotated.starts_with("kernel panic: a test\n  at [<"), "{annotated}");
        assert!(annotated.contains("symbols::annotate"), "{annotated}");
        assert!(annotated.ends_with("\nthe end"), "{annotated}");
        assert_eq!(annotate("no address", &path), "no address");
        assert_eq!(annotate("[<zz>]", Path::new("/nonexistent")), "[<zz>]");
    }
}
