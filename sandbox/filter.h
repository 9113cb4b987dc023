/* System calls that a sandbox refuses (seccomp), on top of what Docker's own profile refuses. Knows nothing of the rest of the supervisor.
 *
 * covered:     what would reach process 1 with an equal uid (prlimit, scheduling), new namespaces and mounts, bpf, perf, io_uring,
 *              userfaultfd, modules, reboot, clocks, swap: EPERM. What would outlive its process and the emptying of a folder (System V ipc,
 *              message queues, kernel keys: EPERM; extended attributes: EOPNOTSUPP, as on a file system without them).
 * not covered: arguments behind pointers; ptrace among the sandbox's own processes stays, debuggers need it.
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#if defined __x86_64__
#define ARCH AUDIT_ARCH_X86_64
#elif defined __aarch64__
#define ARCH AUDIT_ARCH_AARCH64
#else
#error "the sandbox's filter knows x86_64 and aarch64"
#endif
#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define REFUSE(error) BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (error))
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define NEVER(call) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##call, 0, 1), REFUSE(EPERM)
#define NO_SUCH(call) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##call, 0, 1), REFUSE(EOPNOTSUPP)
#define NOT_ON_INIT(call, field) \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##call, 0, 4), LOAD(field), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, 1), REFUSE(EPERM), ALLOW
#ifndef SYS_setxattrat /* Linux 6.13, one number on all machines */
#define SYS_setxattrat 463
#endif
#define NEW_NAMESPACES 0x7e020000 /* CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET} */

static inline int refuse_system_calls(void) { /* 0, or -1 with errno */
    struct sock_filter program[] = {
        LOAD(arch), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1, 0), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        LOAD(nr),
#ifdef __x86_64__
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 0, 1), REFUSE(ENOSYS), /* the x32 numbers */
        NEVER(ioperm), NEVER(iopl), NEVER(create_module), NEVER(uselib),
#endif
        NOT_ON_INIT(prlimit64, args[0]), NOT_ON_INIT(sched_setscheduler, args[0]), NOT_ON_INIT(sched_setparam, args[0]),
        NOT_ON_INIT(sched_setattr, args[0]), NOT_ON_INIT(setpriority, args[1]), NOT_ON_INIT(ioprio_set, args[1]),
        NEVER(sched_setaffinity), /* where no cgroup limits the cpus, the affinity does */
        NEVER(shmget), NEVER(msgget), NEVER(semget), NEVER(mq_open), /* outlives its processes */
        NO_SUCH(setxattr), NO_SUCH(lsetxattr), NO_SUCH(fsetxattr), NO_SUCH(setxattrat), /* outlives the emptying of a folder */
        NEVER(unshare), NEVER(setns), NEVER(mount), NEVER(umount2), NEVER(pivot_root), NEVER(chroot), NEVER(open_tree), NEVER(move_mount),
        NEVER(fsopen), NEVER(fsmount), NEVER(fsconfig), NEVER(fspick), NEVER(open_by_handle_at), NEVER(keyctl), NEVER(add_key),
        NEVER(request_key), NEVER(bpf), NEVER(perf_event_open), NEVER(userfaultfd), NEVER(io_uring_setup), NEVER(io_uring_enter),
        NEVER(io_uring_register), NEVER(init_module), NEVER(finit_module), NEVER(delete_module), NEVER(kexec_load), NEVER(kexec_file_load),
        NEVER(reboot), NEVER(swapon), NEVER(swapoff), NEVER(settimeofday), NEVER(clock_settime), NEVER(adjtimex),
        NEVER(quotactl), NEVER(acct),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 0, 7), LOAD(args[0]), /* no network namespace holds the others: vsock */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 1 /* unix */, 4, 0), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 2 /* inet */, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 10 /* inet6 */, 2, 0), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 16 /* netlink */, 1, 0),
        REFUSE(EAFNOSUPPORT), ALLOW,
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 0, 1), REFUSE(ENOSYS), /* flags behind a pointer; libc falls back to clone */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 3), LOAD(args[0]),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, NEW_NAMESPACES, 0, 1), REFUSE(EPERM),
        ALLOW,
    };
    struct sock_fprog filter = {sizeof program / sizeof *program, program};
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0);
}
