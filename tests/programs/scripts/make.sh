# A small project built by make with two jobs, then changed and built again.
set -e
work=$(mktemp -d); cd "$work"
cat > Makefile <<'END'
OBJECTS = main.o sum.o text.o
program: $(OBJECTS)
	gcc -o $@ $(OBJECTS)
%.o: %.c project.h
	gcc -O2 -Wall -c -o $@ $<
clean: ; rm -f program $(OBJECTS)
END
echo 'int sum(int n); const char *text(int n);' > project.h
printf '#include "project.h"\nint sum(int n) { int s = 0; for (int i = 1; i <= n; i++) s += i; return s; }\n' > sum.c
printf '#include "project.h"\nconst char *text(int n) { return n %% 2 ? "odd" : "even"; }\n' > text.c
printf '#include <stdio.h>\n#include "project.h"\nint main(void) { printf("%%d %%s\\n", sum(100), text(sum(100))); return 0; }\n' > main.c
make -j2 | sort; ./program
make -j2
sed -i 's/s += i/s += 2 * i/' sum.c; make -j2; ./program
echo 'int broken(' > text.c; make -j2 > log 2>&1 || echo "make failed: $?"; grep -c error log
cd /; rm -rf "$work"
