//! Small programs, one for each way in which a number comes to a `syscall` or control to a
//! function: exactly the calls that they can make must be found.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use hx_analyze::{
    cache::Cache,
    program::{Analysis, Request, analyse},
};
use hx_libraries::{nss::AsInImages, tree::HostTree};

/// What the C sources start with: `syscall` instructions with the number in sight.
const PRELUDE: &str = r#"
#define CALL(n) ({ long r; __asm__ volatile("syscall" : "=a"(r) : "a"((long)(n)) : "rcx", "r11", "memory"); r; })
#define GETPID 39
#define GETUID 102
#define GETGID 104
#define GETEUID 107
#define GETEGID 108
#define GETPPID 110
#define EXIT 60
#define KEEP __attribute__((noinline, noclone, used))
volatile long argument;
void start(void);
__asm__(".globl _start\n_start: xor %ebp, %ebp\n and $-16, %rsp\n call start\n hlt\n");
"#;

struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn compile(&self, name: &str, source: &str, flags: &[&str]) -> PathBuf {
        let file = self.dir.path().join(format!("{name}.c"));
        fs::write(&file, format!("{PRELUDE}{source}")).unwrap();
        let output = self.dir.path().join(name);
        let status = Command::new("gcc")
            .args(["-O2", "-fno-stack-protector", "-w", "-o"])
            .arg(&output)
            .arg(&file)
            .args(flags)
            .current_dir(self.dir.path())
            .status()
            .unwrap();
        assert!(status.success(), "{name}: gcc {flags:?}");
        output
    }
}

fn analysed(program: &Path, library_path: Option<&Path>) -> Analysis {
    analysed_with(&Cache::none(), program, library_path)
}

/// The same with what is known of the C library.
fn analysed_with(cache: &Cache, program: &Path, library_path: Option<&Path>) -> Analysis {
    let request = Request {
        program: program.to_path_buf(),
        library_path: library_path.map(|path| path.as_os_str().to_owned()),
        ..Request::default()
    };
    analyse(&HostTree::new("/"), cache, &request).unwrap()
}

const STATIC: [&str; 3] = ["-static", "-nostdlib", "-no-pie"];
const STATIC_PIE: [&str; 3] = ["-static-pie", "-fPIE", "-nostdlib"];

/// Compiles a program without libraries in four ways and expects exactly these calls.
fn expect(source: &str, calls: &[&str]) {
    let fixture = Fixture::new();
    let expected: BTreeSet<String> = calls.iter().map(|call| (*call).to_owned()).collect();
    for flags in [STATIC, STATIC_PIE] {
        for strip in [&[][..], &["-s"]] {
            let flags = [&flags[..], strip].concat();
            let program = fixture.compile("program", source, &flags);
            let analysis = analysed(&program, None);
            assert_eq!(analysis.names(), expected, "{flags:?}: {:?}", analysis.unresolved);
            assert!(analysis.is_complete(), "{flags:?}: {:?}", analysis.unresolved);
        }
    }
}

#[test]
fn a_number_in_sight() {
    expect("void start(void) { CALL(GETPID); CALL(EXIT); }", &["getpid", "exit"]);
}

#[test]
fn what_nobody_calls_is_not_counted() {
    expect(
        "KEEP void unused(void) { CALL(GETUID); }
         static void (*const table[])(void) __attribute__((used)) = { unused };
         void start(void) { CALL(EXIT); }",
        &["exit"],
    );
}

#[test]
fn either_of_two_numbers() {
    expect(
        "void start(void) { CALL(argument ? GETPID : GETUID); CALL(EXIT); }",
        &["getpid", "getuid", "exit"],
    );
}

#[test]
fn the_branches_of_a_switch() {
    expect(
        "KEEP long choose(long n) {
             switch (n) {
             case 0: return CALL(GETPID) + 1; case 1: return CALL(GETUID) * 3;
             case 2: return CALL(GETGID) - 7; case 3: return CALL(GETEUID) ^ 5;
             case 4: return CALL(GETEGID) / 3; case 5: return CALL(GETPPID) & 9;
             case 6: return n * argument; default: return 0;
             }
         }
         void start(void) { choose(argument); CALL(EXIT); }",
        &["getpid", "getuid", "getgid", "geteuid", "getegid", "getppid", "exit"],
    );
}

#[test]
fn a_wrapper_and_its_callers() {
    expect(
        "KEEP long wrapper(long n) { return CALL(n); }
         KEEP long tail(void) { return wrapper(GETUID); }
         KEEP long unused(void) { return wrapper(GETGID); }
         void start(void) { wrapper(GETPID); tail(); CALL(EXIT); }",
        &["getpid", "getuid", "exit"],
    );
}

#[test]
fn a_wrapper_around_a_wrapper() {
    expect(
        "KEEP long inner(long a, long b, long n) { return CALL(n); }
         KEEP long outer(long n) { argument++; long r = inner(1, 2, n); argument--; return r; }
         void start(void) { outer(GETPID); inner(0, 0, GETUID); CALL(EXIT); }",
        &["getpid", "getuid", "exit"],
    );
}

#[test]
fn a_number_that_waits_across_a_call() {
    expect(
        "KEEP void other(void) { argument++; }
         KEEP long wrapper(long n) { other(); return CALL(n); }
         void start(void) { wrapper(GETPID); CALL(EXIT); }",
        &["getpid", "exit"],
    );
}

#[test]
fn a_number_on_the_stack() {
    expect(
        r#"__asm__(".globl on_stack\n.type on_stack, @function\n"
                "on_stack: mov 8(%rsp), %rax\n syscall\n ret\n.size on_stack, .-on_stack\n"
                ".globl caller\n.type caller, @function\n"
                "caller: sub $8, %rsp\n movq $39, (%rsp)\n call on_stack\n add $8, %rsp\n"
                " push $102\n call on_stack\n pop %rcx\n ret\n.size caller, .-caller\n");
         void caller(void);
         void start(void) { caller(); CALL(EXIT); }"#,
        &["getpid", "getuid", "exit"],
    );
}

#[test]
fn a_number_in_a_structure() {
    expect(
        "struct command { int number; long argument; };
         KEEP long run(struct command *c) { argument++; return CALL(c->number); }
         KEEP void one(void) { struct command c = { GETPID, 1 }; run(&c); }
         KEEP void two(void) { struct command c = { GETUID, 2 }; run(&c); }
         void start(void) { one(); two(); CALL(EXIT); }",
        &["getpid", "getuid", "exit"],
    );
}

#[test]
fn a_structure_that_a_variable_points_to() {
    expect(
        "struct command { int number; };
         static struct command *volatile current;
         KEEP void handler(void) { CALL(current->number); }
         KEEP void run(struct command *c) { current = c; handler(); }
         void start(void) { struct command c = { GETPID }; run(&c); CALL(EXIT); }",
        &["getpid", "exit"],
    );
}

#[test]
fn a_variable() {
    expect(
        "static volatile int number = GETPID;
         KEEP void change(void) { number = GETUID; }
         void start(void) { CALL(number); change(); CALL(EXIT); }",
        &["getpid", "getuid", "exit"],
    );
}

#[test]
fn methods_in_a_table() {
    expect(
        "static long first(void) { return CALL(GETPID); }
         static long second(void) { return CALL(GETUID); }
         static long (*const methods[])(void) = { first, second };
         void start(void) { methods[argument](); CALL(EXIT); }",
        &["getpid", "getuid", "exit"],
    );
}

#[test]
fn methods_behind_two_pointers() {
    expect(
        "static long first(void) { return CALL(GETPID); }
         struct class { const char *name; long (*method)(void); };
         static const struct class class = { 0, first };
         struct object { const struct class *class; long value; };
         static struct object object = { &class, 1 };
         KEEP long use(struct object *o) { return o->class->method(); }
         void start(void) { use(&object); CALL(EXIT); }",
        &["getpid", "exit"],
    );
}

#[test]
fn a_handler_whose_address_is_passed() {
    expect(
        "KEEP void handler(int n) { CALL(GETPID); }
         KEEP void install(void (*h)(int)) { argument = (long)h; }
         void start(void) { install(handler); CALL(EXIT); }",
        &["getpid", "exit"],
    );
}

#[test]
fn an_indirect_function() {
    expect(
        "static long implementation(void) { return CALL(GETPID); }
         static void *resolve(void) { return (void *)implementation; }
         long chosen(void) __attribute__((ifunc(\"resolve\")));
         void start(void) { chosen(); CALL(EXIT); }",
        &["getpid", "exit"],
    );
}

#[test]
fn labels_as_values() {
    expect(
        "KEEP long interpret(const unsigned char *code) {
             static const void *const labels[] = { &&a, &&b, &&c };
             goto *labels[*code++];
         a: CALL(GETPID); goto *labels[*code++];
         b: CALL(GETUID); goto *labels[*code++];
         c: return 1;
         }
         void start(void) { interpret((void *)argument); CALL(EXIT); }",
        &["getpid", "getuid", "exit"],
    );
}

#[test]
fn a_function_that_does_not_return_does_not_spoil_what_follows() {
    expect(
        "__attribute__((noreturn)) KEEP void die(void) { for (;;) CALL(EXIT); }
         void start(void) {
             for (;;) {
                 if (argument == 1) die();
                 register long n __asm__(\"r9\") = GETPID;
                 __asm__ volatile(\"mov %%r9, %%rax; syscall\" : : \"r\"(n) : \"rax\", \"rcx\", \"r11\");
                 if (argument == 2) die();
             }
         }",
        &["getpid", "exit"],
    );
}

#[test]
fn a_wrapper_in_a_table() {
    expect(
        "KEEP long wrapper(long n) { return CALL(n); }
         struct table { long (*one)(long); long (*two)(long); } table = { wrapper, wrapper };
         KEEP long pass(struct table *t, long n) { return n ? t->two(GETPID) + 1 : 3; }
         KEEP void unused(void) { argument = (long)&table; }
         KEEP void never(void) { pass(&table, 1); table.one(GETGID); }
         void start(void) { pass(&table, argument); table.one(GETUID); CALL(EXIT); }",
        &["getpid", "getuid", "exit"],
    );
}

#[test]
fn a_wrapper_in_a_table_that_is_used_after_a_loop() {
    // Where the loop begins, rdi is the table's address or what the call left.
    expect(
        "KEEP long wrapper(long n) { return CALL(n); }
         struct table { long (*one)(long); long (*two)(long); } table = { wrapper, wrapper };
         KEEP void wait_for(void) { __asm__ volatile(\"lea 1(%%rax), %%rdi\" : : : \"rdi\"); }
         KEEP long pass(struct table *t) {
             while (__atomic_exchange_n(&argument, 1, __ATOMIC_SEQ_CST)) wait_for();
             return t->two(GETPID) + 1;
         }
         void start(void) { pass(&table); CALL(EXIT); }",
        &["getpid", "exit"],
    );
}

#[test]
fn a_wrapper_in_a_table_that_gets_around_is_not_trusted() {
    let fixture = Fixture::new();
    let ways = [
        "argument = (long)&table;",
        "argument = (long)table.two;",
        "other(argument ? &table : (struct table *)argument);",
        "((long (*)(void *))argument)(&table);",
        "struct table copy = table; other(&copy);",
        "struct { long n; struct table *t; } by = { 1, &table }; other(&by);",
        "CALL2(13, 1, &table);",
        r#"__asm__ volatile("lea table(%%rip), %%rdi; 1: cmpq $0, %0; je 2f; mov %0, %%rdi; jmp 1b; 2: mov %%rdi, %0" : "+m"(argument) : : "rdi", "memory");"#,
    ];
    for way in ways {
        let source = format!(
            "#define CALL2(n, a, b) ({{ long r; __asm__ volatile(\"syscall\" : \"=a\"(r) : \"a\"((long)(n)), \"D\"((long)(a)), \"S\"((long)(b)) : \"rcx\", \"r11\", \"memory\"); r; }})
             KEEP long wrapper(long n) {{ return CALL(n); }}
             struct table {{ long (*one)(long); long (*two)(long); }} table = {{ wrapper, wrapper }};
             KEEP long other(void *t) {{ argument = ((long *)t)[argument]; return argument; }}
             void start(void) {{ {way} table.one(GETUID); CALL(EXIT); }}"
        );
        for flags in [STATIC, STATIC_PIE] {
            let analysis = analysed(&fixture.compile("program", &source, &flags), None);
            assert!(!analysis.is_complete(), "{way} {flags:?}: {:?}", analysis.names());
        }
    }
}

#[test]
fn functions_that_call_each_other() {
    let fixture = Fixture::new();
    let source = "#define CALL2(n, a, b) ({ long r; __asm__ volatile(\"syscall\" : \"=a\"(r) : \"a\"((long)(n)), \"D\"((long)(a)), \"S\"((long)(b)) : \"rcx\", \"r11\", \"memory\"); r; })
                  KEEP long second(long what);
                  KEEP long first(long what) { CALL2(16, 0, what); return argument ? second(what) + 1 : 0; }
                  KEEP long second(long what) { CALL2(72, 0, what); return argument ? first(what) + 2 : 0; }
                  void start(void) { first(1); second(2); CALL(EXIT); }";
    let analysis = analysed(&fixture.compile("program", source, &STATIC), None);
    assert_eq!(analysis.arguments[&16], Some([1, 2].into()));
    assert_eq!(analysis.arguments[&72], Some([1, 2].into()));
}

#[test]
fn a_variable_of_each_thread() {
    expect(
        "KEEP long first(void) { return CALL(GETPID); }
         __thread long (*method)(void) = first;
         void start(void) { method(); CALL(EXIT); }",
        &["getpid", "exit"],
    );
}

#[test]
fn an_address_in_the_middle_of_a_table() {
    let fixture = Fixture::new();
    let source = "KEEP long first(void) { return CALL(GETPID); }
                  KEEP long second(void) { return CALL(GETUID); }
                  struct row { long number; long (*method)(void); };
                  struct row rows[] = { { 1, first }, { 2, second } };
                  KEEP long use(struct row *row) { return row[argument].method(); }
                  void start(void) { use(&rows[1]); CALL(EXIT); }";
    let analysis = analysed(&fixture.compile("program", source, &STATIC_PIE), None);
    assert!(analysis.names().contains("getpid"), "{:?}", analysis.names());
}

#[test]
fn what_the_linker_collects() {
    expect(
        "KEEP long first(void) { return CALL(GETPID); }
         KEEP long second(void) { return CALL(GETUID); }
         typedef long (*method)(void);
         __attribute__((section(\"collected\"), used)) method one = first;
         __attribute__((section(\"collected\"), used)) method two = second;
         extern method __start_collected[], __stop_collected[];
         void start(void) {
             for (method *at = __start_collected; at < __stop_collected; at++) (*at)();
             CALL(EXIT);
         }",
        &["getpid", "getuid", "exit"],
    );
}

#[test]
fn an_unknown_number_is_reported_with_its_place() {
    let fixture = Fixture::new();
    let source = "KEEP long wild(long *p) { return CALL(p[argument]); }
                  void start(void) { wild((long *)argument); CALL(EXIT); }";
    let program = fixture.compile("program", source, &STATIC);
    let analysis = analysed(&program, None);
    assert!(!analysis.is_complete());
    assert_eq!(analysis.unresolved.len(), 1, "{:?}", analysis.unresolved);
    assert!(analysis.unresolved[0].function.starts_with("wild"), "{:?}", analysis.unresolved);
    assert!(analysis.kernel_config(false).is_none());
    let assumed = analysis.kernel_config(true).unwrap();
    assert_eq!(assumed.calls, ["exit"]);
    assert!(analysis.toml(&program, false).contains("calls = \"all\""));
}

#[test]
fn a_wrapper_whose_address_is_taken_is_not_trusted() {
    let fixture = Fixture::new();
    let source = "KEEP long wrapper(long n) { return CALL(n); }
                  void start(void) { argument = (long)wrapper; wrapper(GETPID); CALL(EXIT); }";
    let analysis = analysed(&fixture.compile("program", source, &STATIC), None);
    assert!(!analysis.is_complete());
    assert!(analysis.names().contains("getpid"));
}

/// A library with wrappers, and a program that calls some of them through the PLT, through the
/// GOT, and by name.
#[test]
fn libraries_are_followed_by_symbol() {
    let fixture = Fixture::new();
    let library = "long wrapper(long n) { return CALL(n); }
                   long direct(void) { return CALL(149); }
                   long unused(void) { return CALL(150); }
                   __attribute__((constructor)) static void construct(void) { CALL(GETEGID); }
                   struct table { long (*f)(void); }; static long method(void) { return CALL(151); }
                   struct table table = { method };";
    fixture.compile(
        "libone.so",
        library,
        &["-shared", "-fPIC", "-nostdlib", "-Wl,-soname,libone.so"],
    );
    let loaded = "long loaded(void) { return CALL(152); } long never(void) { return CALL(153); }";
    fixture.compile(
        "libtwo.so",
        loaded,
        &["-shared", "-fPIC", "-nostdlib", "-Wl,-soname,libtwo.so"],
    );
    let program = r#"
        #include <dlfcn.h>
        long wrapper(long); long direct(void); extern struct table { long (*f)(void); } table;
        int main(void) {
            wrapper(146); direct(); table.f();
            void *two = dlopen("libtwo.so", RTLD_NOW);
            long (*loaded)(void) = (long (*)(void))dlsym(two, "loaded");
            return loaded();
        }"#;
    let program = program.replace("int main", "void start(void) {} int main");
    for flags in [&["-fno-plt"][..], &["-no-pie"], &["-Wl,-z,now"], &["-Wl,-z,lazy"]] {
        let file = fixture.dir.path().join("main.c");
        fs::write(&file, &program).unwrap();
        let output = fixture.dir.path().join("main");
        let status = Command::new("gcc")
            .args(["-O2", "-w", "-o"])
            .arg(&output)
            .args([&*file.to_string_lossy(), "-L.", "-lone"])
            .args(flags)
            .current_dir(fixture.dir.path())
            .status()
            .unwrap();
        assert!(status.success(), "{flags:?}");
        let analysis = analysed(&output, Some(fixture.dir.path()));
        let names = analysis.names();
        // 149 to 153 in asm/unistd_64.h.
        for call in ["mlock", "mlockall", "munlockall", "getegid"] {
            assert!(names.contains(call), "{flags:?}: {call} in {names:?}");
        }
        assert!(!names.contains("munlock"), "{flags:?}: {names:?}");
        // Callers in other files are followed for functions of C libraries only; others are reported.
        let unknown: BTreeSet<&str> =
            analysis.unresolved.iter().map(|unresolved| &*unresolved.function).collect();
        assert!(unknown.iter().all(|function| function.starts_with("main")), "{unknown:?}");
        assert_eq!(unknown.len(), 1);
        let why = analysis.why(151);
        assert!(why.contains("main") || why.contains("data_"), "{why}");
    }
}

#[test]
fn the_address_of_a_neighbour_in_the_plt() {
    let fixture = Fixture::new();
    let library = "KEEP long syscall(long n) { return CALL(n); }
                   KEEP void one(void) {} KEEP void two(void) {} KEEP void three(void) {}";
    fixture.compile("libone.so", library, &["-shared", "-fPIC", "-nostdlib"]);
    let program = "long syscall(long); void one(void), two(void), three(void);
                   void *volatile kept[3];
                   void start(void) {
                       syscall(GETPID);
                       kept[0] = one; kept[1] = two; kept[2] = three;
                   }";
    let flags = ["-nostdlib", "-fno-pie", "-no-pie", "-Wl,-z,lazy", "-L.", "-lone"];
    let program = fixture.compile("program", program, &flags);
    let analysis = analysed(&program, Some(fixture.dir.path()));
    assert!(analysis.is_complete(), "{:?}", analysis.unresolved);
    assert!(analysis.names().contains("getpid"));
}

#[test]
fn an_import_that_is_called_through_a_register() {
    let fixture = Fixture::new();
    let library = "KEEP long syscall(long n) { return CALL(n); } KEEP void other(void *f) {}";
    fixture.compile("libone.so", library, &["-shared", "-fPIC", "-nostdlib"]);
    let numbers_of = |more: &str| {
        let source = format!(
            "void *volatile kept; void other(void *);
             void start(void) {{
                 __asm__ volatile(\"sub $0x88, %rsp\\n mov syscall@GOTPCREL(%rip), %r12\\n mov $151, %edi\\n call *%r12\\n\"
                                  \"mov %r12, 0x60(%rsp)\\n 1: mov $149, %edi\\n mov 0x60(%rsp), %r8\\n call *%r8\\n\"
                                  \"cmp %r12, %rax\\n je 1b\\n {more}\");
             }}"
        );
        let flags = ["-nostdlib", "-L.", "-lone"];
        let program = fixture.compile("program", &source, &flags);
        analysed_with(&Cache::open(), &program, Some(fixture.dir.path()))
    };
    let known = numbers_of("mov kept(%rip), %rax");
    assert!(known.is_complete(), "{:?}", known.unresolved);
    let names = known.names();
    assert!(names.contains("mlockall") && names.contains("mlock"), "{names:?}");
    // Somebody else may call it with any number.
    for more in [
        "mov %r12, kept(%rip)",
        "mov %r12, %rdi\\n call other@PLT",
        "lea 1(%r12), %rax\\n mov %rax, kept(%rip)",
        "mov %r12, %rax\\n ret",
        "push syscall@GOTPCREL(%rip)\\n pop kept(%rip)",
        "lea syscall@GOTPCREL(%rip), %rax\\n mov %rax, kept(%rip)",
    ] {
        assert!(!numbers_of(more).is_complete(), "{more}");
    }
}

#[test]
fn a_wrapper_that_is_called_through_a_register() {
    let source = |load: &str, more: &str| {
        format!(
            "KEEP long wrapper(long n) {{ return CALL(n); }}
             void *volatile kept; KEEP void other(void *f) {{ kept = f; }}
             void start(void) {{
                 __asm__ volatile(\"{load}\\n 1: mov $39, %edi\\n call *%r12\\n\"
                                  \"mov $102, %edi\\n call *%r12\\n cmp %r12, %rax\\n je 1b\\n {more}\");
             }}"
        )
    };
    let word = "mov word(%rip), %r12\\n .pushsection .data\\n .balign 8\\n word: .quad wrapper\\n .popsection";
    for load in ["lea wrapper(%rip), %r12", word] {
        expect(&source(load, "nop"), &["getpid", "getuid"]);
        let fixture = Fixture::new();
        for more in ["mov %r12, kept(%rip)", "mov %r12, %rdi\\n call other"] {
            let program = fixture.compile("program", &source(load, more), &STATIC_PIE);
            assert!(!analysed(&program, None).is_complete(), "{load} {more}");
        }
    }
}

#[test]
fn what_only_the_unwinder_leads_to() {
    expect(
        "KEEP long wrapper(long n) { return CALL(n); }
         KEEP void die(void) { for (;;) CALL(EXIT); }
         void start(void) {
             if (argument) wrapper(GETUID);
             __asm__ volatile(\"call die\\n mov $39, %edi\\n xor %eax, %eax\\n call wrapper\\n ud2\");
         }",
        &["exit", "getpid", "getuid"],
    );
}

#[test]
fn a_write_that_reaches_into_the_next_word() {
    let fixture = Fixture::new();
    // The number is the second half of what is written.
    let source = "static int pair[2] __attribute__((aligned(8)));
        void start(void) {
            __asm__ volatile(\"mov %1, %%rax\\n mov %%rax, %0\\n mov 4+%0, %%eax\\n syscall\"
                             : \"+m\"(*(long *)pair) : \"i\"(0x2700000000) : \"rax\", \"rcx\", \"r11\");
        }";
    for flags in [STATIC, STATIC_PIE] {
        let analysis = analysed(&fixture.compile("program", source, &flags), None);
        assert!(
            analysis.names().contains("getpid") || !analysis.is_complete(),
            "{flags:?}: {:?}",
            analysis.names()
        );
    }
}

#[test]
fn go_changes_the_user_of_all_threads() {
    let fixture = Fixture::new();
    let source =
        "package main\nimport \"syscall\"\nfunc main() { syscall.Setuid(syscall.Getuid()) }\n";
    let path = fixture.dir.path();
    fs::write(path.join("main.go"), source).unwrap();
    for flags in [&["-ldflags=-s"][..], &["-buildmode=pie"]] {
        let mut go = Command::new("go");
        go.args(["build", "-o", "program"]).args(flags).arg("main.go").current_dir(path);
        go.env("CGO_ENABLED", "0").env("GOFLAGS", "").env("GO111MODULE", "off");
        assert!(go.env("GOCACHE", path.join("cache")).status().unwrap().success());
        let analysis = analysed(&path.join("program"), None);
        assert!(analysis.is_complete(), "{flags:?}: {:?}", analysis.unresolved);
        assert!(analysis.names().contains("setuid"));
    }
}

#[test]
fn why_shows_the_chain_from_the_start() {
    let fixture = Fixture::new();
    let source = "KEEP long deep(void) { return CALL(GETPID) + argument; }
                  KEEP long middle(void) { return deep() + 1; }
                  void start(void) { middle(); CALL(EXIT); }";
    let analysis = analysed(&fixture.compile("program", source, &STATIC), None);
    let why = analysis.why(39);
    let places = ["start (", "middle (", "deep ("].map(|name| why.find(name).unwrap());
    assert!(places.is_sorted(), "{why}");
    assert!(analysis.why(102).contains("cannot be reached"));
    assert!(analysis.dot().contains("getpid"));
}

#[test]
fn arguments_that_decide_are_known() {
    let fixture = Fixture::new();
    let source = "#define CALL2(n, a, b) ({ long r; __asm__ volatile(\"syscall\" : \"=a\"(r) : \"a\"((long)(n)), \"D\"((long)(a)), \"S\"((long)(b)) : \"rcx\", \"r11\", \"memory\"); r; })
                  KEEP long request(long fd, long what) { return CALL2(16, fd, what); }
                  void start(void) { request(0, 0x5401); request(1, 0x5413); CALL2(41, CALL(GETPID), 1); CALL(EXIT); }";
    let analysis = analysed(&fixture.compile("program", source, &STATIC), None);
    assert_eq!(analysis.arguments[&16], Some([0x5401, 0x5413].into()));
    assert_eq!(analysis.arguments[&41], None);
}

#[test]
fn what_is_opened_is_known() {
    let fixture = Fixture::new();
    let opened = |path: &str| {
        let source = format!(
            "#define OPEN(path) ({{ long r; __asm__ volatile(\"syscall\" : \"=a\"(r) : \"a\"(2L), \"D\"(path), \"S\"(0L) : \"rcx\", \"r11\", \"memory\"); r; }})
             char changing[] = \"/dev/null\";
             KEEP long open(const char *path) {{ return OPEN(path); }}
             void start(void) {{ open(\"/dev/null\"); open({path}); CALL(EXIT); }}"
        );
        let program = fixture.compile("program", &source, &STATIC_PIE);
        analysed(&program, None).arguments[&2].clone()
    };
    assert_eq!(opened("\"/dev/null\""), Some([0].into()));
    assert_eq!(opened("\"/dev/zero\""), Some([0, 1].into()));
    assert_eq!(opened("\"/dev/null/\""), Some([0, 1].into()));
    assert_eq!(opened("changing"), Some([0, 1].into()));
    assert_eq!(opened("(char *)CALL(GETPID)"), None);
}

#[test]
fn a_second_run_uses_what_was_kept() {
    let fixture = Fixture::new();
    let program =
        fixture.compile("program", "void start(void) { CALL(GETPID); CALL(EXIT); }", &STATIC);
    let cache = Cache::at(fixture.dir.path().join("cache"));
    let request = Request { program, ..Request::default() };
    let tree = HostTree::new("/");
    let first = analyse(&tree, &cache, &request).unwrap();
    let kept: Vec<_> = fs::read_dir(fixture.dir.path().join("cache")).unwrap().collect();
    assert_eq!(kept.len(), 1);
    assert_eq!(analyse(&tree, &cache, &request).unwrap().names(), first.names());
    // What is damaged is made anew.
    fs::write(kept[0].as_ref().unwrap().path(), b"nonsense").unwrap();
    assert_eq!(analyse(&tree, &cache, &request).unwrap().names(), first.names());
}

/// Damaged files give a result or an error, soon.
#[test]
fn damaged_files_are_no_danger() {
    let fixture = Fixture::new();
    let source = "static long first(void) { return CALL(GETPID); }
                  static long (*const methods[])(void) = { first, first };
                  KEEP long wrapper(long n) { return CALL(n); }
                  void start(void) { methods[argument](); wrapper(EXIT); }";
    let library = [&["-shared", "-fPIC", "-nostdlib"][..], &["-Wl,-soname,x.so"]].concat();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for flags in [&STATIC[..], &STATIC_PIE, &library] {
        let whole = fs::read(fixture.compile("program", source, flags)).unwrap();
        let path = fixture.dir.path().join("damaged");
        let begin = Instant::now();
        for round in 0..400 {
            let mut bytes = whole.clone();
            for _ in 0..1 + next() % 8 {
                // Half of the damage to the headers, half anywhere.
                let limit = if next() % 2 == 0 { 1024.min(bytes.len()) } else { bytes.len() };
                let at = next() as usize % limit;
                bytes[at] = if next() % 3 == 0 { 0xff } else { next() as u8 };
            }
            if round % 10 == 0 {
                bytes.truncate(next() as usize % bytes.len());
            }
            fs::write(&path, &bytes).unwrap();
            let request = Request { program: path.clone(), ..Request::default() };
            let _ = analyse(&HostTree::new("/"), &Cache::none(), &request);
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{flags:?}: {:?}", begin.elapsed());
    }
}

#[test]
fn the_dynamic_linker_does_not_execute_others_by_itself() {
    let fixture = Fixture::new();
    let compile = |name: &str, source: &str| {
        let file = fixture.dir.path().join(format!("{name}.c"));
        fs::write(&file, source).unwrap();
        let output = fixture.dir.path().join(name);
        let mut gcc = Command::new("gcc");
        assert!(gcc.args(["-O2", "-w", "-o"]).args([&output, &file]).status().unwrap().success());
        analyse(
            &HostTree::new("/"),
            &Cache::open(),
            &Request { program: output, ..Request::default() },
        )
        .unwrap()
    };
    let hello = compile("hello", "int main(void) { puts(\"hello\"); return 0; }");
    assert!(!hello.names().contains("execve") && !hello.executes_others());
    let shell = compile("shell", "int main(void) { execl(\"/bin/true\", \"true\", 0); return 1; }");
    assert!(shell.names().contains("execve") && shell.executes_others());
    // A dynamic linker that is the C library as well, as musl's, executes for the program.
    let linker = "long hx_execute(void) { return CALL(59); } void _dlstart(void) { CALL(322); }";
    let flags = ["-shared", "-fPIC", "-nostdlib", "-Wl,-e,_dlstart", "-Wl,-soname,libhx.so"];
    let flags = [&flags[..], &["-fvisibility=hidden"]].concat();
    let exported = linker.replace("long hx_", "__attribute__((visibility(\"default\"))) long hx_");
    for (source, is_found) in [(&exported[..], [true, false]), (linker, [false, false])] {
        let linker = fixture.compile("libhx.so", source, &flags);
        let interpreter = format!("-Wl,--dynamic-linker={}", linker.display());
        let flags = ["-nostdlib", "-pie", "-fPIE", "-L.", "-l:libhx.so", &interpreter];
        let main =
            "__attribute__((weak)) long hx_execute(void); void start(void) { hx_execute(); }";
        let program = fixture.compile("main", main, &flags);
        let names = analysed(&program, Some(fixture.dir.path())).names();
        assert_eq!(["execve", "execveat"].map(|call| names.contains(call)), is_found, "{names:?}");
    }
}

/// A program may execute others, and these may load libraries by names that are computed, wherever the
/// files lie.
#[test]
fn programs_that_are_executed_count_with_what_they_load() {
    let fixture = Fixture::new();
    fixture.compile(
        "libplug.so",
        "long plug(void) { return CALL(152); } long hx_other(void) { return CALL(153); }",
        &["-shared", "-fPIC", "-nostdlib", "-Wl,-soname,libplug.so"],
    );
    let loader = r#"
        #include <dlfcn.h>
        void start(void) {}
        int main(int count, char **words) {
            void *library = dlopen(words[1], RTLD_NOW);
            return ((long (*)(void))dlsym(library, "plug"))();
        }"#;
    fs::write(fixture.dir.path().join("loader.c"), loader).unwrap();
    let status = Command::new("gcc")
        .args(["-O2", "-w", "-o", "loader", "loader.c"])
        .current_dir(fixture.dir.path())
        .status();
    assert!(status.unwrap().success());
    // A program that knows the library's symbol by chance, and loads nothing.
    let quiet =
        "const char *volatile name = \"hx_other\"; void start(void) { name++; CALL(GETGID); }";
    let quiet = fixture.compile("quiet", quiet, &STATIC);
    let executes = fixture.compile("executes", "void start(void) { CALL(59); }", &STATIC);
    let request = |program: &Path| Request {
        program: program.to_path_buf(),
        executables: vec![fixture.dir.path().join("loader"), quiet.clone()],
        libraries: vec![fixture.dir.path().join("libplug.so")],
        ..Request::default()
    };
    let calls = |program: &Path| {
        analyse(&HostTree::new("/"), &Cache::open(), &request(program)).unwrap().names()
    };
    let names = calls(&executes);
    for call in ["munlockall", "getgid", "openat"] {
        assert!(names.contains(call), "{call} in {names:?}");
    }
    assert!(!names.contains("vhangup"), "{names:?}");
    assert_eq!(calls(&quiet), ["getgid".to_owned()].into());
}

/// What a library for linking defines is not looked up by a name that is computed, what a plugin defines may be; and
/// nobody is bound to a library that nobody needs.
#[test]
fn plugins_are_told_from_libraries_for_linking() {
    let fixture = Fixture::new();
    let dir = fixture.dir.path();
    fixture.compile(
        "liblink.so",
        "long hx_looked_up(void) { return CALL(152); } long hx_both(void) { return CALL(153); }
         __attribute__((constructor)) void begin(void) { CALL(GETUID); }",
        &["-shared", "-fPIC", "-nostdlib", "-Wl,-soname,liblink.so"],
    );
    fixture.compile(
        "libneeded.so",
        "__attribute__((weak)) long hx_both(void) { return CALL(154); }
         long hx_needed(void) { return hx_both(); }",
        &["-shared", "-fPIC", "-nostdlib", "-Wl,-soname,libneeded.so"],
    );
    let loader = r#"
        #include <dlfcn.h>
        long hx_needed(void);
        void start(void) {}
        int main(int count, char **words) {
            hx_needed();
            return ((long (*)(void))dlsym(dlopen(words[1], RTLD_NOW), words[2]))();
        }"#;
    fs::write(dir.join("loader.c"), loader).unwrap();
    let status = Command::new("gcc")
        .args(["-O2", "-w", "-o", "loader", "loader.c", "-L.", "-lneeded"])
        .current_dir(dir)
        .status();
    assert!(status.unwrap().success());
    fs::create_dir(dir.join("plugins")).unwrap();
    std::os::unix::fs::symlink("../liblink.so", dir.join("plugins/link.so")).unwrap();
    let calls = |libraries: &[&str], also: &[&str]| {
        let paths = |names: &[&str]| names.iter().map(|name| dir.join(name)).collect();
        let request = Request {
            program: dir.join("loader"),
            library_path: Some(dir.into()),
            libraries: paths(libraries),
            also: paths(also),
            ..Request::default()
        };
        let names = analyse(&HostTree::new("/"), &Cache::open(), &request).unwrap().names();
        ["getuid", "munlockall", "vhangup", "modify_ldt"].map(|call| names.contains(call))
    };
    assert_eq!(calls(&[], &[]), [false, false, false, true]);
    assert_eq!(calls(&["liblink.so"], &[]), [true, false, false, true]);
    assert_eq!(calls(&["liblink.so", "plugins/link.so"], &[]), [true, true, true, true]);
    assert_eq!(calls(&[], &["liblink.so"]), [true, true, true, true]);
}

/// Programs of an image share their libraries' files; what an import of one is bound to differs all the same.
#[test]
fn programs_that_share_a_library_define_symbols_for_it() {
    let fixture = Fixture::new();
    let library = "long hook(void); long common(void) { return hook(); }";
    let flags = ["-shared", "-fPIC", "-nostdlib", "-Wl,-soname,libcommon.so"];
    fixture.compile("libcommon.so", library, &flags);
    let dynamic = [
        "-nostdlib",
        "-no-pie",
        "-L.",
        "-rdynamic",
        "-Wl,--dynamic-linker=/lib64/ld-linux-x86-64.so.2",
    ];
    let program = |name: &str, call: u32, begin: &str, libraries: &[&str]| {
        let source = format!(
            "long common(void); long hook(void) {{ return CALL({call}); }} void start(void) {{ {begin} CALL(EXIT); }}"
        );
        fixture.compile(name, &source, &[&dynamic[..], &["-Wl,--no-as-needed"], libraries].concat())
    };
    let executables = vec![
        program("first", 152, "common();", &["-lcommon"]),
        program("second", 153, "common();", &["-lcommon"]),
        // Its function of that name is none for the library, and nobody calls it.
        program("third", 154, "", &[]),
    ];
    let executes = fixture.compile("executes", "void start(void) { CALL(59); }", &STATIC);
    let request = Request {
        program: executes,
        library_path: Some(fixture.dir.path().as_os_str().to_owned()),
        executables,
        ..Request::default()
    };
    let analysis = analyse(&HostTree::new("/"), &Cache::none(), &request).unwrap();
    let names = analysis.names();
    assert!(names.contains("munlockall") && names.contains("vhangup"), "{names:?}");
    assert!(!names.contains("modify_ldt"), "{names:?}");
    // Each file is there once.
    let common = analysis.paths().into_iter().filter(|path| path.ends_with("libcommon.so"));
    assert_eq!(common.count(), 1);
}

/// A library's import may be bound to what is loaded after the import was met.
#[test]
fn an_import_that_a_later_library_defines() {
    let fixture = Fixture::new();
    let flags = |name| [&["-shared", "-fPIC", "-nostdlib"][..], &[name]].concat();
    fixture.compile(
        "liblate.so",
        "long late(void) { return CALL(152); }",
        &flags("-Wl,-soname,liblate.so"),
    );
    let early = "long late(void); void *dlopen(const char *, int);
                 KEEP void load(void) { dlopen(\"liblate.so\", 0x101); }
                 long early(void) { load(); return late() + 1; }";
    fixture.compile("libearly.so", early, &flags("-Wl,-soname,libearly.so"));
    let program = r#"
        #include <dlfcn.h>
        void start(void) {}
        int main(void) {
            void *library = dlopen("libearly.so", RTLD_LAZY);
            return ((long (*)(void))dlsym(library, "early"))();
        }"#;
    fs::write(fixture.dir.path().join("main.c"), program).unwrap();
    let status = Command::new("gcc")
        .args(["-O2", "-w", "-o", "main", "main.c"])
        .current_dir(fixture.dir.path())
        .status();
    assert!(status.unwrap().success());
    let analysis = analysed(&fixture.dir.path().join("main"), Some(fixture.dir.path()));
    assert!(analysis.names().contains("munlockall"), "{:?}", analysis.names());
}

/// Strings that are not looked up are no names; where names are computed, or `dlsym` gets around, all of
/// the file's strings may be, and those of files that call it.
#[test]
fn names_that_are_looked_up() {
    let fixture = Fixture::new();
    // 149 to 153 in asm/unistd_64.h.
    fixture.compile(
        "libplug.so",
        "long hx_plug(void) { return CALL(151); } long hx_word(void) { return CALL(152); }",
        &["-shared", "-fPIC", "-nostdlib", "-Wl,-soname,libplug.so"],
    );
    let finder = "void *dlsym(void *, const char *);
                  void *find(void **library, const char **names, long n) { return dlsym(*library, names[n]); }
                  void *find_fixed(void) { return dlsym(0, \"hx_plug\"); }";
    fixture.compile("libfinder.so", finder, &["-shared", "-fPIC", "-nostdlib"]);
    let calls = |main: &str| {
        let source = format!(
            "#include <dlfcn.h>
             void start(void) {{}}
             char changing[] = \"hx_word\";
             const char *volatile word = \"hx_word\";
             static const char *const names[] = {{ \"hx_plug\", \"hx_word\" }};
             void *find(void **, const char *const *, long); void *find_fixed(void);
             typedef long (*function)(void);
             KEEP void *lookup(void *library, const char *name) {{ argument++; return dlsym(library, name); }}
             int main(int count, char **words) {{
                 word++;
                 void *library = dlopen(\"libplug.so\", RTLD_NOW | RTLD_GLOBAL);
                 return {main};
             }}"
        );
        let flags = ["-pie", "-L.", "-l:libfinder.so", "-l:libplug.so", "-Wl,-z,now"];
        let source = format!(
            "{}\n{source}",
            PRELUDE.replace(".globl _start", ".globl _other").replace("_start:", "_other:")
        );
        let file = fixture.dir.path().join("main.c");
        fs::write(&file, source).unwrap();
        let status = Command::new("gcc")
            .args(["-O2", "-w", "-fPIE", "-o", "main", "main.c"])
            .args(flags)
            .current_dir(fixture.dir.path())
            .status();
        assert!(status.unwrap().success(), "{main}");
        let program = fixture.dir.path().join("main");
        let analysis = analysed_with(&Cache::open(), &program, Some(fixture.dir.path()));
        ["munlock", "mlockall", "munlockall"].map(|call| analysis.names().contains(call))
    };
    let plug = "((function)dlsym(library, \"hx_plug\"))()";
    assert_eq!(calls(plug), [false, true, false]);
    assert_eq!(calls("((function)lookup(library, \"hx_plug\"))()"), [false, true, false]);
    assert_eq!(calls("((function)find_fixed())()"), [false, true, false]);
    for computed in [
        "((function)dlsym(library, names[count]))()",
        "((function)dlsym(library, words[1]))() + (long)names[count]",
        "((function)dlsym(library, changing))()",
        "((function)lookup(library, count ? \"hx_word\" : words[1]))()",
        "((function)find(&library, names, count))()",
        "((function)((void *(*)(void *, const char *))words[count])(library, \"hx_word\"))() + (argument = (long)dlsym)",
        "((function)((void *(*)(void *, const char *))words[count])(library, \"hx_word\"))() + (argument = (long)lookup)",
    ] {
        assert!(calls(computed)[2], "{computed}");
    }
}

/// A library that only stores into a table of wrappers does not learn what was in it.
#[test]
fn a_table_that_another_library_fills() {
    let fixture = Fixture::new();
    let program = "KEEP long wrapper(long n) { return CALL(n); }
        struct table { long (*one)(long); long (*two)(long); } table = { wrapper, wrapper };
        void hx_load(struct table *);
        void start(void) { hx_load(&table); table.one(GETUID); CALL(EXIT); }";
    for (load, is_known) in [
        ("t->one = other; t->two = other;", true),
        ("argument = (long)t->one;", false),
        ("argument = (long)t;", false),
        ("t->one = (function)t;", false),
        ("t->one = other; argument = t->two(39);", false),
    ] {
        let load = format!(
            "typedef long (*function)(long); struct table {{ function one, two; }};
             static long other(long n) {{ return n; }}
             void hx_load(struct table *t) {{ {load} }}"
        );
        fixture.compile("libload.so", &load, &["-shared", "-fPIC", "-nostdlib"]);
        let flags = ["-nostdlib", "-pie", "-fPIE", "-L.", "-l:libload.so", "-Wl,-z,now"];
        let program = fixture.compile("program", program, &flags);
        let analysis = analysed_with(&Cache::open(), &program, Some(fixture.dir.path()));
        assert_eq!(analysis.is_complete(), is_known, "{load}: {:?}", analysis.unresolved);
        assert!(analysis.names().contains("getuid"), "{load}: {:?}", analysis.names());
    }
}

/// A program of the C library and a shared library, compiled with these flags.
fn with_library(fixture: &Fixture, library: &str, flags: &[&str], program: &str) -> Analysis {
    let all = [&["-shared", "-fPIC", "-nostdlib", "-Wl,-soname,libone.so"], flags].concat();
    fixture.compile("libone.so", library, &all);
    let source = format!("void start(void) {{}} {program}");
    let file = fixture.compile("main", &source, &["-nostartfiles", "-L.", "-lone", "-Wl,-e,main"]);
    analysed_with(&Cache::open(), &file, Some(fixture.dir.path()))
}

#[test]
fn what_only_a_variable_of_a_thread_leads_to() {
    let fixture = Fixture::new();
    let set = "static __thread void *state;
               KEEP void set(void *new) { state = new; }
               KEEP void leave(void) { if (state) { CALL(151); state = 0; } }";
    let (exec, dynamic) = (["-ftls-model=initial-exec"], ["-ftls-model=global-dynamic"]);
    let found = |library: &str, flags: &[&str], program: &str| {
        with_library(&fixture, library, flags, program).names().contains("mlockall")
    };
    let leaves = "void leave(void); int main(void) { leave(); return 0; }";
    assert!(!found(set, &exec, leaves));
    let sets = "void leave(void), set(void *); int main(void) { set(main); leave(); return 0; }";
    assert!(found(set, &exec, sets));
    // Somebody may take its address and store there, whether he does or not.
    let taken = format!("{set} KEEP void *where(void) {{ return &state; }}");
    assert!(found(&taken, &exec, leaves));
    // It is found otherwise.
    assert!(found(set, &dynamic, leaves));
    // Others find it by its name.
    assert!(found(&set.replace("static", ""), &exec, leaves));
    // It holds something at first.
    let full =
        set.replace("static", "void set(void *); static").replace("*state;", "*state = set;");
    assert!(found(&full, &exec, leaves));
    // There is another way to what it leads to.
    let other = set.replace("if (state)", "if (argument || state)");
    assert!(found(&other, &exec, leaves));
}

#[test]
fn what_lies_beside_the_place_of_a_variable_of_a_thread() {
    let fixture = Fixture::new();
    let library = "static __thread long state; extern long other(void);
                   KEEP long next(void) { return state++; }
                   KEEP void *unused(void) { return other; }";
    let program = "long next(void); __attribute__((visibility(\"default\"))) long other(void) { return CALL(151); }
                   int main(void) { return next(); }";
    let names = with_library(&fixture, library, &["-ftls-model=global-dynamic"], program).names();
    assert!(!names.contains("mlockall"), "{names:?}");
    let program = program
        .replace("next()", "next() + (long)unused()")
        .replace("long next", "void *unused(void); long next");
    let names = with_library(&fixture, library, &["-ftls-model=global-dynamic"], &program).names();
    assert!(names.contains("mlockall"), "{names:?}");
}

#[test]
fn tunables_that_nobody_sets() {
    let fixture = Fixture::new();
    let library =
        "KEEP void __tunable_get_val(int id, void *value, void (*f)(void *)) { argument = id; }
                   KEEP void other(int id, void *value, void (*f)(void *)) { argument = id; }";
    let program = "void __tunable_get_val(int, void *, void *); void other(int, void *, void *);
                   KEEP void callback(void *v) { CALL(151); }
                   int main(void) { __tunable_get_val(1, 0, callback); return 0; }";
    let names = with_library(&fixture, library, &[], program).names();
    assert!(!names.contains("mlockall"), "{names:?}");
    let elsewhere = program.replace("{ __tun", "{ other(2, 0, callback); __tun");
    let names = with_library(&fixture, library, &[], &elsewhere).names();
    assert!(names.contains("mlockall"), "{names:?}");
    fixture.compile(
        "main",
        &format!("void start(void) {{}} {program}"),
        &["-nostartfiles", "-L.", "-lone", "-Wl,-e,main"],
    );
    let request = Request {
        program: fixture.dir.path().join("main"),
        library_path: Some(fixture.dir.path().as_os_str().to_owned()),
        variables: BTreeSet::from(["GLIBC_TUNABLES".to_owned()]),
        ..Request::default()
    };
    let names = analyse(&HostTree::new("/"), &Cache::open(), &request).unwrap().names();
    assert!(names.contains("mlockall"), "{names:?}");
}

/// The calls of a program that is linked with the host's C library.
fn of_c(fixture: &Fixture, cache: &Cache, source: &str, variables: &[&str]) -> BTreeSet<String> {
    let file = fixture.dir.path().join("c.c");
    let output = fixture.dir.path().join("c");
    fs::write(&file, source).unwrap();
    let mut gcc = Command::new("gcc");
    let status = gcc.args(["-O2", "-w", "-o"]).args([&output, &file]).status().unwrap();
    assert!(status.success());
    let request = Request {
        program: output,
        variables: variables.iter().map(|name| (*name).to_owned()).collect(),
        ..Request::default()
    };
    analyse(&AsInImages(HostTree::new("/")), cache, &request).unwrap().names()
}

#[test]
fn what_of_the_c_library_a_program_can_reach() {
    let fixture = Fixture::new();
    let cache = Cache::open();
    let of = |source: &str, variables: &[&str]| of_c(&fixture, &cache, source, variables);
    let has = |names: &BTreeSet<String>, call: &str| names.contains(call);

    // The priority of a thread changes only where a mutex may have PTHREAD_PRIO_PROTECT.
    let mutex = "#include <pthread.h>
                 pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER; pthread_mutexattr_t a;
                 int main(void) { SET pthread_mutex_lock(&m); return pthread_mutex_unlock(&m); }";
    let plain = of(&mutex.replace("SET", ""), &[]);
    assert!(!has(&plain, "sched_setscheduler") && has(&plain, "futex"), "{plain:?}");
    let set = "pthread_mutexattr_setprotocol(&a, PTHREAD_PRIO_PROTECT);
               pthread_mutex_init(&m, &a);";
    assert!(has(&of(&mutex.replace("SET", set), &[]), "sched_setscheduler"));
    let by_name = "#define _GNU_SOURCE\n#include <dlfcn.h>
                   #include <pthread.h>
                   pthread_mutex_t m; pthread_mutexattr_t a;
                   int main(void) { int (*f)() = dlsym(RTLD_DEFAULT, \"pthread_mutexattr_setprotocol\");
                   f(&a, 2); pthread_mutex_init(&m, &a); return pthread_mutex_lock(&m); }";
    assert!(has(&of(by_name, &[]), "sched_setscheduler"));

    // Profiling is asked for by a variable.
    let nothing = "int main(void) { return 0; }";
    assert!(!has(&of(nothing, &[]), "setitimer"));
    assert!(has(&of(nothing, &["LD_PROFILE"]), "setitimer"));
    let timer = "#include <sys/time.h>\nint main(void) { return setitimer(0, 0, 0); }";
    assert!(has(&of(timer, &[]), "setitimer"));

    // The module of NSS for names of hosts is not needed for users.
    let users = "#include <pwd.h>\nint main(void) { return getpwnam(\"root\")->pw_uid; }";
    let users = of(users, &[]);
    assert!(!has(&users, "sendmmsg") && has(&users, "openat"), "{users:?}");
    let hosts = "#include <netdb.h>\nint main(void) { return !gethostbyname(\"localhost\"); }";
    assert!(has(&of(hosts, &[]), "sendmmsg"));

    // A thread that ends tidies up for RPC only where RPC was used.
    let thread = "#include <pthread.h>\nstatic void *run(void *p) { RUN return p; }
                  int main(void) { pthread_t t; return pthread_create(&t, 0, run, 0); }";
    assert!(!has(&of(&thread.replace("RUN", ""), &[]), "bind"));
    // Only an older version of this is left, for programs that were linked before.
    let old =
        "extern void svc_run(void); __asm__(\".symver svc_run,svc_run@GLIBC_2.2.5\"); svc_run();";
    assert!(has(&of(&thread.replace("RUN", old), &[]), "bind"));
}

#[test]
fn what_the_c_library_does_after_other_calls() {
    let fixture = Fixture::new();
    let cache = Cache::open();
    let of = |source: &str| of_c(&fixture, &cache, &format!("#define _GNU_SOURCE\n{source}"), &[]);
    let which = |names: &BTreeSet<String>, calls: &[&str]| -> Vec<String> {
        calls.iter().filter(|call| names.contains(**call)).map(|call| (*call).to_owned()).collect()
    };

    // What the child of posix_spawn does, its flags and file actions say.
    let spawn = |set: &str| {
        let source = "#include <spawn.h>
                      #include <unistd.h>
                      posix_spawnattr_t a; posix_spawn_file_actions_t f;
                      int main(int count, char **words) {
                          SET return posix_spawn(0, \"/bin/true\", &f, &a, words, words); }";
        let names = of(&source.replace("SET", set));
        assert!(names.contains("execve") && names.contains("dup2"), "{names:?}");
        let calls = ["setresuid", "setpgid", "sched_setscheduler", "setsid", "chdir", "fchdir"];
        which(&names, &calls)
    };
    let none: [&str; 0] = [];
    assert_eq!(spawn(""), none);
    assert_eq!(spawn("posix_spawnattr_setflags(&a, POSIX_SPAWN_SETSID);"), ["setsid"]);
    let group = "posix_spawnattr_setflags(&a, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);";
    assert_eq!(spawn(group), ["setpgid"]);
    let any = ["setresuid", "setpgid", "sched_setscheduler", "setsid"];
    assert_eq!(spawn("posix_spawnattr_setflags(&a, count);"), any);
    let kept = "short (*volatile set)() = (void *)posix_spawnattr_setflags; set(&a, 0);";
    assert_eq!(spawn(kept), any);
    assert_eq!(spawn("posix_spawn_file_actions_addchdir_np(&f, \"/\");"), ["chdir"]);
    assert_eq!(spawn("posix_spawn_file_actions_addfchdir_np(&f, 0);"), ["fchdir"]);
    // A call of its own is none of the child's.
    assert_eq!(spawn("setsid();"), ["setsid"]);

    // What a new thread does, its attributes say; what only several threads do, none does alone.
    let thread = |source: &str| {
        let source = format!(
            "#include <pthread.h>
             #include <sched.h>
             #include <stdlib.h>
             #include <unistd.h>
             static void *run(void *p) {{ return p; }}
             pthread_t t; pthread_attr_t a; cpu_set_t c; pthread_mutex_t m; pthread_mutexattr_t k;
             int main(int count, char **words) {{ free(malloc(count)); {source} return 0; }}"
        );
        let calls = [
            "sched_setscheduler",
            "sched_setaffinity",
            "sched_yield",
            "madvise",
            "sched_get_priority_max",
        ];
        which(&of(&source), &calls)
    };
    assert_eq!(thread(""), none);
    let allocates = "#include <stdlib.h>\nint main(int n) { free(malloc(n)); return 0; }";
    let tuned = of_c(&fixture, &cache, allocates, &["GLIBC_TUNABLES"]);
    assert_eq!(which(&tuned, &["madvise"]), ["madvise"]);
    let create = |set: &str| thread(&format!("{set} pthread_create(&t, &a, run, 0);"));
    let several = ["sched_yield", "madvise"];
    assert_eq!(create(""), several);
    assert_eq!(create("pthread_attr_setinheritsched(&a, PTHREAD_INHERIT_SCHED);"), several);
    let scheduled = ["sched_setscheduler", "sched_yield", "madvise"];
    assert_eq!(create("pthread_attr_setinheritsched(&a, PTHREAD_EXPLICIT_SCHED);"), scheduled);
    let bound = ["sched_setaffinity", "sched_yield", "madvise"];
    assert_eq!(create("pthread_attr_setaffinity_np(&a, sizeof c, &c);"), bound);
    assert_eq!(create("pthread_getattr_np(pthread_self(), &a);"), bound);
    let mutex = |protocol: &str| {
        let set =
            format!("pthread_mutexattr_setprotocol(&k, {protocol}); pthread_mutex_init(&m, &k);");
        thread(&format!("{set} pthread_mutex_trylock(&m);"))
    };
    assert_eq!(mutex("PTHREAD_PRIO_INHERIT"), none);
    assert_eq!(mutex("PTHREAD_PRIO_PROTECT"), ["sched_setscheduler", "sched_get_priority_max"]);

    // The first thread ends by itself only if something ends threads.
    let exits = "#include <unistd.h>\nint main(void) { EXIT return 0; }";
    let ends = |source: &str| which(&of(source), &["exit"]);
    assert_eq!(ends(&exits.replace("EXIT", "")), none);
    assert_eq!(ends(&exits.replace("EXIT", "_exit(0);")), none);
    assert_eq!(ends(&exits.replace("EXIT", "pthread_exit(0);")), ["exit"]);
    assert_eq!(ends(&exits.replace("EXIT", "syscall(60, 0);")), ["exit"]);

    // How many processors there are is asked for by a number.
    let processors = |name: &str| {
        let source = format!("#include <unistd.h>\nint main(int n) {{ return sysconf({name}); }}");
        which(&of(&source), &["sched_getaffinity"])
    };
    assert_eq!(processors("_SC_OPEN_MAX"), none);
    assert_eq!(processors("_SC_NPROCESSORS_ONLN"), ["sched_getaffinity"]);
    assert_eq!(processors("n"), ["sched_getaffinity"]);

    // Linux has faccessat2.
    let access = of("#include <unistd.h>\nint main(void) { return faccessat(0, \"x\", 4, 512); }");
    assert_eq!(which(&access, &["faccessat", "faccessat2", "getgroups"]), ["faccessat2"]);
    let asked = of("#include <unistd.h>\nint main(void) { return getgroups(0, 0); }");
    assert_eq!(which(&asked, &["getgroups"]), ["getgroups"]);
}
