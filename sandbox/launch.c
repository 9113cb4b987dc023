/* Starts a program in control groups and as an ordinary user, faster than a chain of shell tools. Knows nothing of bwrap or sandboxes.
 *
 * argv: [g=FOLDER]... [u=UID [s=PATH]...] -- PROGRAM [ARGUMENT]...
 *   g=   join this control group
 *   u=   (as root) become this uid and gid, in a mount namespace of our own
 *   s=   make this path reachable for that uid, although it lies below folders that only root may enter: as /run/greengrad/<number>
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define VIEW "/run/greengrad"

static void must(int failed, const char *what) {
    if (!failed) return;
    fprintf(stderr, "launch: %s: %s\n", what, strerror(errno));
    exit(125);
}

static void join(const char *folder) {
    char path[4096];
    snprintf(path, sizeof path, "%s/cgroup.procs", folder);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    must(fd < 0 || write(fd, "0", 1) != 1, path);
    close(fd);
}

static void open_view(void) {
    must(unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "mount namespace");
    must(mkdir(VIEW, 0755) && errno != EEXIST, VIEW);
    must(mount("greengrad", VIEW, "tmpfs", 0, "mode=755,size=1m"), VIEW);
}

static void show(const char *source, int number) {
    char place[64];
    struct stat info;
    snprintf(place, sizeof place, VIEW "/%d", number);
    must(stat(source, &info), source);
    must(S_ISDIR(info.st_mode) ? mkdir(place, 0755) : mknod(place, S_IFREG | 0644, 0), place);
    must(mount(source, place, NULL, MS_BIND | MS_REC, NULL), source);
}

int main(int argc, char **argv) {
    int at = 1, sources = 0;
    uid_t uid = 0;
    for (; at < argc && strcmp(argv[at], "--"); at++) {
        const char *value = argv[at] + 2;
        if (!strncmp(argv[at], "g=", 2)) join(value);
        else if (!strncmp(argv[at], "s=", 2)) show(value, sources++);
        else if (!strncmp(argv[at], "u=", 2)) uid = strtoul(value, NULL, 10), open_view();
        else errno = EINVAL, must(1, argv[at]);
    }
    if (uid) must(setgroups(0, NULL) || setresgid(uid, uid, uid) || setresuid(uid, uid, uid), "uid");
    if (at + 1 < argc) execvp(argv[at + 1], argv + at + 1);
    must(1, at + 1 < argc ? argv[at + 1] : "a program is missing");
}
