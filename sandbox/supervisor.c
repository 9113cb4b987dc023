/* Process 1 of a sandbox: runs one command at a time and moves files, as frames on stdin ask. Knows nothing of Docker, bwrap or tasks.
 *
 * covered:     a command dies at its time limit with all its children, also those that called setsid or forked twice (kill(-1) in our
 *              pid namespace is atomic against fork); it ends when its main process ends, whoever still holds its output; output of any
 *              size is capped here (first and last half); the machine ends when stdin closes or its life is over; a process inside can
 *              neither kill us (pid 1), open our channel (not dumpable; children get pipes of their own), nor starve us with
 *              prlimit or a scheduling class (seccomp); system calls that only widen the attack surface are refused.
 * not covered: two commands at once; a terminal; memory, pids and cpu (cgroups, set by who starts us, or the limits in argv);
 *              a process in uninterruptible sleep: a kill that is not confirmed in KILL_SECONDS is reported, and the host drops us.
 *
 * argv: life_seconds file_bytes processes memory_bytes   (0: no limit here)
 * Frames, little endian:  request  u32 size | u32 id | u8 op | body        reply  u32 size | u32 id | u32 errno | body
 *   'P'  u32 life_seconds                          a sign of life; a new life where it is not 0
 *   'I'  bytes                                     appended to the next command's stdin
 *   'X'  u32 milliseconds, u32 cap, u16 argc, u16 envc, cwd\0 argv\0... env\0...
 *                                                  -> u32 exit code, u32 flags, u64 microseconds, u64 dropped, output
 *                                                  cap 0: the output comes before that, in replies of errno EINPROGRESS, none dropped
 *   'R'  u64 offset, u32 most, path\0              -> u64 file size, bytes
 *   'W'  u64 offset, u32 mode, path\0 bytes        (offset 0 makes parents and truncates)
 *   'K'                                            kills everything; also obeyed while a command runs
 */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>

#include "files.h"
#include "filter.h"
#include "output.h"

enum { CHUNK = 1 << 20, IN_MAX = CHUNK + (64 << 10), HEADER = 12, RESULT = 24, KILL_SECONDS = 5 };
enum { TIMED_OUT = 1, OUT_OF_MEMORY = 2, KILLED = 4, UNCONFIRMED = 8, EXIT_NOT_INIT = 96, EXIT_LIFE_OVER = 97, EXIT_BAD_FRAME = 98 };
struct command { char *cwd, **argv, **env; uint32_t milliseconds, cap; };

static unsigned char in[IN_MAX], out[HEADER + RESULT + OUTPUT_MAX];
static size_t in_size;
static int children, next_stdin = -1, oom_fd = -1; /* children: a signalfd for SIGCHLD */
static double life_ends;
static struct { uint64_t file, processes, memory; } limits;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static int until(double when) { /* milliseconds, or until the end of our life where that is sooner */
    double left = (when < life_ends ? when : life_ends) - now();
    if (life_ends <= now()) _exit(EXIT_LIFE_OVER);
    return left <= 0 ? 0 : left > 1e6 ? 1000000000 : (int)(left * 1000) + 1;
}

static void fill(void) { /* take what the host has sent */
    ssize_t n = read(0, in + in_size, IN_MAX - in_size);
    if (n == 0) _exit(0); /* the owner is gone */
    if (n > 0) in_size += n;
    else if (errno != EAGAIN && errno != EINTR) _exit(EXIT_BAD_FRAME);
}

static size_t frame(void) { /* size of the first whole frame, 0 while there is none */
    uint32_t size;
    if (in_size < 9) return 0;
    memcpy(&size, in, 4);
    if (size < 5 || size > IN_MAX - 4) _exit(EXIT_BAD_FRAME);
    return in_size >= 4 + size ? 4 + size : 0;
}

static void drop_frame(void) {
    size_t size = frame();
    memmove(in, in + size, in_size -= size);
}

static void reply(uint32_t id, uint32_t error, size_t body) { /* the body lies at out + HEADER already */
    uint32_t head[3] = {8 + (uint32_t)body, id, error};
    memcpy(out, head, HEADER);
    for (size_t sent = 0; sent < HEADER + body;) {
        struct pollfd p = {1, POLLOUT, 0};
        if (poll(&p, 1, until(life_ends)) <= 0) continue;
        ssize_t n = write(1, out + sent, HEADER + body - sent);
        if (n > 0) sent += n;
        else if (errno != EAGAIN && errno != EINTR) _exit(0);
    }
}

static long oom_kills(void) { /* how many processes the kernel has killed here for memory; 0 where it does not tell */
    char text[1024] = "";
    if (oom_fd < 0 || pread(oom_fd, text, sizeof text - 1, 0) < 0) return 0;
    const char *found = strstr(text, "oom_kill ");
    return found ? atol(found + 9) : 0;
}

static int kill_everything(void) { /* 0 once nothing but us is left */
    double end = now() + KILL_SECONDS;
    do {
        kill(-1, SIGKILL);
        while (waitpid(-1, NULL, WNOHANG) > 0) {}
        if (waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD) return 0;
        struct pollfd p = {children, POLLIN, 0};
        struct signalfd_siginfo info;
        if (poll(&p, 1, 20) > 0 && read(children, &info, sizeof info) < 0) continue;
    } while (now() < end);
    return -1;
}

static void limit(int resource, uint64_t most) {
    if (most && setrlimit(resource, &(struct rlimit){most, most})) _exit(126);
}

static void become(const struct command *command, int input, int output) { /* in the child, until exec */
    sigset_t none;
    sigemptyset(&none);
    setsid();
    if (dup2(input, 0) < 0 || dup2(output, 1) < 0 || dup2(output, 2) < 0) _exit(126);
#ifdef SYS_close_range
    syscall(SYS_close_range, 3, ~0U, 0); /* all of them close on exec as well */
#endif
    prctl(PR_SET_DUMPABLE, 1); /* only now: nothing of ours is left to look at, and /proc/self becomes our own */
    int score = open("/proc/self/oom_score_adj", O_WRONLY);
    if (score < 0 || write(score, "500", 3) != 3 || close(score)) dprintf(2, "sandbox: oom_score_adj: %s\n", strerror(errno));
    limit(RLIMIT_FSIZE, limits.file);
    limit(RLIMIT_NPROC, limits.processes);
    limit(RLIMIT_AS, limits.memory);
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (chdir(command->cwd)) {
        dprintf(2, "sandbox: %s: %s\n", command->cwd, strerror(errno));
        _exit(126);
    }
    execve(command->argv[0], command->argv, command->env);
    dprintf(2, "sandbox: %s: %s\n", command->argv[0], strerror(errno));
    _exit(errno == ENOENT ? 127 : 126);
}

static pid_t start(const struct command *command, int *output) { /* *output: where the command's output can be read */
    int ends[2], input = next_stdin >= 0 ? next_stdin : open("/dev/null", O_RDONLY | O_CLOEXEC);
    next_stdin = -1;
    if (input < 0 || pipe2(ends, O_CLOEXEC)) return -1;
    lseek(input, 0, SEEK_SET);
    pid_t child = fork();
    if (child < 0 && errno == EAGAIN && kill_everything() == 0) child = fork(); /* leftovers had used up the pids */
    if (child == 0) become(command, input, ends[1]);
    int error = errno;
    close(input), close(ends[1]);
    if (child < 0) close(ends[0]);
    errno = error;
    return *output = ends[0], child;
}

static int reap(pid_t child, int *status) { /* true when `child` was among the dead; strays are buried with it */
    struct signalfd_siginfo info;
    int one, ended = 0;
    if (read(children, &info, sizeof info) < 0 && errno != EAGAIN) _exit(EXIT_BAD_FRAME);
    for (pid_t pid; (pid = waitpid(-1, &one, WNOHANG)) > 0;)
        if (pid == child) ended = 1, *status = one;
    return ended;
}

static ssize_t take_output(uint32_t id, const struct command *command, struct output *output, int fd) { /* what read() returned */
    if (command->cap) return keep(output, fd);
    ssize_t n = read(fd, out + HEADER, CHUNK);
    if (n > 0) reply(id, EINPROGRESS, n); /* who does not read makes the command wait, until our life is over */
    return n;
}

static void run(uint32_t id, const struct command *command) {
    struct output output = expect(out + HEADER + RESULT, command->cap);
    double begin = now(), deadline = begin + command->milliseconds / 1e3;
    long ooms = oom_kills();
    uint32_t result[2] = {0, 0};
    int status = 0, fd, ended = 0;
    pid_t child = start(command, &fd);
    drop_frame(); /* the child has its own copy; what comes next may be 'K' */
    if (child < 0) return reply(id, errno, 0);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    if (!command->cap) fcntl(fd, F_SETPIPE_SZ, CHUNK);
    while (!ended) {
        struct pollfd p[] = {{children, POLLIN, 0}, {fd, POLLIN, 0}, {in_size < IN_MAX ? 0 : -1, POLLIN, 0}};
        poll(p, 3, until(deadline));
        if (p[1].revents && take_output(id, command, &output, fd) == 0) close(fd), fd = -1; /* every writer has closed it */
        if (p[0].revents) ended = reap(child, &status);
        if (p[2].revents) fill();
        int asked = frame() && in[8] == 'K';
        if (!ended && (asked || now() >= deadline)) {
            result[1] |= asked ? KILLED : TIMED_OUT;
            if (kill_everything()) result[1] |= UNCONFIRMED;
            status = SIGKILL, ended = 1;
        }
    }
    for (int left = fd < 0 ? 0 : fcntl(fd, F_GETPIPE_SZ) / 4096 + 1; left > 0 && take_output(id, command, &output, fd) > 0;) left--;
    if (fd >= 0) close(fd); /* a child in the background may go on, but says nothing more */
    if (oom_kills() > ooms) result[1] |= OUT_OF_MEMORY;
    result[0] = result[1] & TIMED_OUT ? 124 : WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    size_t kept = finish(&output);
    uint64_t figures[] = {(now() - begin) * 1e6, output.total - kept};
    memcpy(out + HEADER, result, sizeof result);
    memcpy(out + HEADER + sizeof result, figures, sizeof figures);
    reply(id, 0, RESULT + kept);
}

static void forget_stdin(void) {
    if (next_stdin >= 0) close(next_stdin);
    next_stdin = -1;
}

static int add_stdin(const unsigned char *data, size_t size) { /* 0 or an errno; a file in memory: no one has to feed it */
    if (next_stdin < 0 && (next_stdin = memfd_create("stdin", MFD_CLOEXEC)) < 0) return errno;
    if (write(next_stdin, data, size) == (ssize_t)size) return 0;
    forget_stdin();
    return ENOSPC;
}

static void take(unsigned char **at, unsigned char *end, void *to, size_t size) { /* a number of a frame; one too short is not ours */
    if ((size_t)(end - *at) < size) _exit(EXIT_BAD_FRAME);
    memcpy(to, *at, size);
    *at += size;
}

static char *string(unsigned char **at, unsigned char *end) { /* takes one that ends in \0 */
    unsigned char *text = *at, *zero = memchr(text, 0, end - text);
    if (!zero) _exit(EXIT_BAD_FRAME);
    *at = zero + 1;
    return (char *)text;
}

static void run_frame(uint32_t id, unsigned char *at, unsigned char *end) {
    static char *words[4096];
    uint16_t counts[2];
    struct command command = {.argv = words};
    take(&at, end, &command.milliseconds, 4), take(&at, end, &command.cap, 4), take(&at, end, counts, 4);
    if (counts[0] < 1 || counts[0] + counts[1] + 2 > 4096) _exit(EXIT_BAD_FRAME);
    command.env = words + counts[0] + 1;
    command.cwd = string(&at, end);
    for (int i = 0; i < counts[0]; i++) command.argv[i] = string(&at, end);
    for (int i = 0; i < counts[1]; i++) command.env[i] = string(&at, end);
    command.argv[counts[0]] = command.env[counts[1]] = NULL;
    run(id, &command);
}

static void read_file(uint32_t id, uint64_t offset, uint32_t most, const char *path) {
    uint64_t size = 0;
    ssize_t n = read_part(path, offset, out + HEADER + 8, most < CHUNK ? most : CHUNK, &size);
    memcpy(out + HEADER, &size, 8);
    reply(id, n < 0 ? errno : 0, n < 0 ? 0 : 8 + n);
}

static void obey(unsigned char *at, unsigned char *end) { /* the frame in front */
    uint64_t offset;
    uint32_t id, number;
    memcpy(&id, in + 4, 4);
    switch (in[8]) {
    case 'X': return run_frame(id, at, end); /* drops its frame itself */
    case 'I': reply(id, add_stdin(at, end - at), 0); break;
    case 'K':
        forget_stdin(); /* of a command whose caller has gone */
        reply(id, kill_everything() ? EBUSY : 0, 0);
        break;
    case 'P':
        take(&at, end, &number, 4);
        if (number) life_ends = now() + number;
        reply(id, 0, 0);
        break;
    case 'R': case 'W':
        take(&at, end, &offset, 8), take(&at, end, &number, 4);
        char *path = string(&at, end);
        if (in[8] == 'W') reply(id, write_part(path, offset, number, at, end - at), 0);
        else read_file(id, offset, number, path);
        break;
    default: _exit(EXIT_BAD_FRAME);
    }
    drop_frame();
}

static void settle(char **argv) { /* before the first command: out of reach, and deaf to signals */
    sigset_t every, child;
    sigfillset(&every);
    sigemptyset(&child), sigaddset(&child, SIGCHLD);
    umask(022);
    life_ends = now() + strtod(argv[1], NULL);
    limits.file = strtoull(argv[2], NULL, 10), limits.processes = strtoull(argv[3], NULL, 10), limits.memory = strtoull(argv[4], NULL, 10);
    if ((oom_fd = open("/sys/fs/cgroup/memory.events", O_RDONLY | O_CLOEXEC)) < 0) /* version 2, else 1 */
        oom_fd = open("/sys/fs/cgroup/memory/memory.oom_control", O_RDONLY | O_CLOEXEC);
    if (prctl(PR_SET_DUMPABLE, 0) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || refuse_system_calls() || chdir("/")
        || sigprocmask(SIG_SETMASK, &every, NULL) || (children = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK)) < 0
        || fcntl(0, F_SETFL, O_NONBLOCK) || fcntl(1, F_SETFL, O_NONBLOCK)) {
        perror("supervisor");
        _exit(EXIT_NOT_INIT);
    }
}

int main(int argc, char **argv) {
    if (getpid() != 1 || argc != 5) { /* anywhere else kill(-1) would hit the whole machine */
        fputs("supervisor: runs as process 1 of a sandbox only\n", stderr);
        return EXIT_NOT_INIT;
    }
    for (settle(argv);;) {
        int status;
        struct pollfd p[] = {{children, POLLIN, 0}, {0, POLLIN, 0}};
        poll(p, 2, until(life_ends));
        if (p[0].revents) reap(0, &status);
        if (p[1].revents) fill();
        for (size_t size; (size = frame());) obey(in + 9, in + size);
    }
}
