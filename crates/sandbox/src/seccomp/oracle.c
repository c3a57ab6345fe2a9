/* Compiles the rules on standard input with libseccomp and writes the program to standard output.
 * Names that it does not know go to standard error, one per line. Used by tests only. */
#include <seccomp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(void) {
    char word[64], name[64];
    scmp_filter_ctx ctx = NULL;
    uint32_t fallback = 0;
    while (scanf("%63s", word) == 1) {
        if (!strcmp(word, "default")) {
            if (scanf("%u", &fallback) != 1) return 2;
            ctx = seccomp_init(fallback);
        } else if (!strcmp(word, "arch")) {
            if (scanf("%63s", name) != 1) return 2;
            uint32_t token = seccomp_arch_resolve_name(name);
            if (token != seccomp_arch_native() && seccomp_arch_add(ctx, token)) return 3;
        } else if (!strcmp(word, "rule")) {
            uint32_t action;
            unsigned count;
            struct scmp_arg_cmp args[6];
            if (scanf("%63s %u %u", name, &action, &count) != 3 || count > 6) return 2;
            for (unsigned i = 0; i < count; i++) {
                unsigned index, op;
                unsigned long long a, b;
                if (scanf("%u %u %llu %llu", &index, &op, &a, &b) != 4) return 2;
                args[i] = (struct scmp_arg_cmp){index, op, a, b};
            }
            int nr = seccomp_syscall_resolve_name(name);
            if (nr == __NR_SCMP_ERROR) {
                fprintf(stderr, "%s\n", name);
                continue;
            }
            int rc = seccomp_rule_add_array(ctx, action, nr, count, args);
            if (rc) {
                fprintf(stderr, "rule for %s: %d\n", name, rc);
                return 4;
            }
        }
    }
    return seccomp_export_bpf(ctx, 1) ? 5 : 0;
}
