/* Reading and writing parts of files inside the sandbox, where every path may be a trap. Knows nothing of frames or commands. */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

/* A regular file of a real filesystem, or -1: never a pipe that blocks, never /proc, where a link of the agent's could point. */
static int open_regular(const char *path, int flags, struct stat *info) {
    struct statfs system;
    int fd = open(path, flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0600), error = 0;
    if (fd < 0) return -1;
    if (fstat(fd, info) || fstatfs(fd, &system)) error = errno;
    else if (S_ISDIR(info->st_mode)) error = EISDIR;
    else if (!S_ISREG(info->st_mode) || system.f_type == 0x9fa0 /* proc */ || system.f_type == 0x62656572 /* sysfs */) error = EACCES;
    if (!error) return fd;
    close(fd);
    errno = error;
    return -1;
}

static ssize_t read_part(const char *path, uint64_t offset, void *to, size_t most, uint64_t *size) { /* bytes read, or -1 with errno */
    struct stat info;
    int fd = open_regular(path, O_RDONLY, &info);
    if (fd < 0) return -1;
    ssize_t n = pread(fd, to, most, offset);
    int error = errno;
    close(fd);
    *size = info.st_size;
    errno = error;
    return n;
}

static int make_parents(char *path) { /* 0 or an errno */
    for (char *slash = path; (slash = strchr(slash + 1, '/'));) {
        *slash = 0;
        int failed = mkdir(path, 0755) && errno != EEXIST ? errno : 0;
        *slash = '/';
        if (failed) return failed;
    }
    return 0;
}

/* 0 or an errno. The first part (offset 0) makes the parents and truncates. */
static int write_part(char *path, uint64_t offset, mode_t mode, const void *data, size_t size) {
    struct stat info;
    int error = offset ? 0 : make_parents(path), fd = error ? -1 : open_regular(path, O_WRONLY | (offset ? 0 : O_CREAT), &info);
    if (fd < 0) return error ? error : errno;
    if (offset == 0 && (ftruncate(fd, 0) || fchmod(fd, mode))) error = errno;
    for (size_t done = 0; !error && done < size;) {
        ssize_t n = pwrite(fd, (const char *)data + done, size - done, offset + done);
        if (n < 0) error = errno;
        else done += n;
    }
    close(fd);
    return error;
}
