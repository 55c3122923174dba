/* Compiles a profile with libseccomp for comparison. One rule a line on stdin:
 *   D <action>                                 default action
 *   A <arch token>                             architecture besides the native one
 *   R <action> <call> [<arg> <op> <a> <b>]...  rule; numbers in hexadecimal
 * The program goes to stdout. Prototypes are written out: the library's header need not be installed. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
struct cmp { unsigned arg; int op; uint64_t a, b; };
void *seccomp_init(uint32_t);
int seccomp_arch_add(void *, uint32_t);
int seccomp_syscall_resolve_name(const char *);
int seccomp_rule_add_array(void *, uint32_t, int, unsigned, const struct cmp *);
int seccomp_export_bpf(void *, int);
int main(void)
{
	char line[1024], name[128];
	void *ctx = NULL;
	while (fgets(line, sizeof line, stdin)) {
		unsigned act; int used;
		if (sscanf(line, "D %x", &act) == 1) {
			ctx = seccomp_init(act);
		} else if (sscanf(line, "A %x", &act) == 1) {
			if (seccomp_arch_add(ctx, act)) return 2;
		} else if (sscanf(line, "R %x %127s%n", &act, name, &used) == 2) {
			struct cmp c[6]; unsigned n = 0; char *p = line + used; int more;
			unsigned long long a, b;
			while (n < 6 && sscanf(p, " %x %x %llx %llx%n", &c[n].arg, (unsigned *)&c[n].op, &a, &b, &more) == 4) {
				c[n].a = a; c[n].b = b; n++; p += more;
			}
			int nr = seccomp_syscall_resolve_name(name);
			if (nr == -1) continue;
			int rc = seccomp_rule_add_array(ctx, act, nr, n, c);
			if (rc) { fprintf(stderr, "%s: %d\n", name, rc); return 3; }
		}
	}
	return seccomp_export_bpf(ctx, 1) ? 4 : 0;
}
