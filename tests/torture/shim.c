/* Stands between a process and libc (LD_PRELOAD), counts every file-system call below one folder, and makes a chosen
 * one go wrong: the process is killed before it or half-way through it, it fails, it does half of its work, or it
 * waits until the harness has done something else.
 *
 * The harness and all processes of a command share one file, `struct control`, mapped into each: processes that the
 * command starts count together with it. Must not know what is being tortured; tests/torture/shim.py says the same
 * numbers in Python.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum kind { OPEN, CREATE, READ, WRITE, COPY, SYNC, RENAME, LINK, UNLINK, MKDIR, RMDIR, TRUNCATE, LIST, STAT, LOCK, MODE };
enum mode { COUNT, KILL, KILL_ONE, HALF, FAIL, SHORT, PAUSE };
enum state { IDLE, WAITING, GO };
enum { ENTRIES = 1 << 14, PATH_BYTES = 4096, SHOWN_BYTES = 240 };

struct entry {
    uint32_t kind, process;
    uint64_t size;
    char path[SHOWN_BYTES]; /* below the root; the end of it where it is longer */
};

struct control {
    _Atomic uint64_t calls;  /* so far, of all processes */
    uint64_t target;         /* strike at the first call of `kinds` from this one on; 0: never */
    uint32_t mode, kinds;    /* `kinds` has a bit for each kind */
    int32_t error;           /* of FAIL */
    uint32_t sticky;         /* FAIL again at every later call of `kinds` */
    int32_t link_error;      /* every hard link fails with it, whatever else is asked; 0: none does */
    int32_t lock_error;      /* likewise every flock; -1: each succeeds, and locks nothing */
    _Atomic uint32_t state;  /* of PAUSE */
    uint32_t root_bytes;
    _Atomic uint64_t struck; /* the number of the call, 0: not yet */
    char root[1024];
    struct entry trace[ENTRIES];
};

static struct control *control; /* NULL: nothing is counted */

/* Map the control file of the next command, or stop counting if `path` is NULL. */
int torture_arm(const char *path)
{
    control = NULL;
    if (path == NULL)
        return 0;
    int file = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (file < 0)
        return -1;
    void *mapped = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    syscall(SYS_close, file);
    if (mapped == MAP_FAILED)
        return -1;
    control = mapped;
    return 0;
}

unsigned long torture_control_bytes(void) { return sizeof(struct control); }

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("TORTURE_CONTROL");
    if (path != NULL)
        torture_arm(path);
}

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);
    if (found == NULL)
        abort();
    return found;
}

/* Return the path of an open file, "" if it has none. */
static const char *path_of(int file, char *memory)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, memory, PATH_BYTES - 1);
    memory[length < 0 ? 0 : length] = 0;
    return memory;
}

/* Return the absolute path that `folder` and `path` mean together. */
static const char *path_at(int folder, const char *path, char *memory)
{
    if (path == NULL || path[0] == 0)
        return path_of(folder, memory);
    if (path[0] == '/')
        return path;
    if (folder == AT_FDCWD) {
        if (syscall(SYS_getcwd, memory, PATH_BYTES) < 0)
            return "";
    } else {
        path_of(folder, memory);
    }
    size_t length = strlen(memory);
    snprintf(memory + length, PATH_BYTES - length, "/%s", path);
    return memory;
}

static void wait_for_the_harness(void)
{
    struct timespec moment = {0, 300000};
    atomic_store(&control->state, WAITING);
    while (atomic_load(&control->state) != GO)
        syscall(SYS_nanosleep, &moment, NULL);
}

__attribute__((noreturn)) static void die(int everybody)
{
    syscall(SYS_kill, everybody ? 0 : getpid(), SIGKILL);
    for (;;)
        pause();
}

enum verdict { PROCEED, FAILED, DO_HALF, DO_HALF_AND_DIE };

static void record(uint64_t number, enum kind kind, const char *path, size_t size)
{
    struct entry *entry = &control->trace[number < ENTRIES ? number : ENTRIES - 1];
    size_t length = strlen(path);
    entry->kind = kind;
    entry->process = getpid();
    entry->size = size;
    snprintf(entry->path, sizeof entry->path, "%s", path + (length < sizeof entry->path ? 0 : length - sizeof entry->path + 1));
}

/* Count a call, and decide what becomes of it. Sets errno if it is to fail. */
static enum verdict count(enum kind kind, const char *path, size_t size)
{
    if (control == NULL || strncmp(path, control->root, control->root_bytes) != 0)
        return PROCEED;
    if (path[control->root_bytes] != '/' && path[control->root_bytes] != 0)
        return PROCEED;
    uint64_t number = atomic_fetch_add(&control->calls, 1) + 1, none = 0;
    record(number, kind, path + control->root_bytes, size);
    if ((kind == LINK && control->link_error) || (kind == LOCK && control->lock_error > 0)) {
        errno = kind == LINK ? control->link_error : control->lock_error;
        return FAILED;
    }
    if (control->mode == COUNT || control->target == 0 || number < control->target || !(control->kinds >> kind & 1))
        return PROCEED;
    if ((control->mode == HALF || control->mode == SHORT) && size < 2)
        return PROCEED;
    if (!atomic_compare_exchange_strong(&control->struck, &none, number) && !control->sticky)
        return PROCEED;
    switch (control->mode) {
    case KILL: die(1);
    case KILL_ONE: die(0);
    case HALF: return DO_HALF_AND_DIE;
    case SHORT: return DO_HALF;
    case FAIL: errno = control->error; return FAILED;
    default: wait_for_the_harness(); return PROCEED;
    }
}

/* Only a call that is to fail finds another errno than before: whoever lists a folder compares. */
#define KEEPING_ERRNO(counted)                                                                                        \
    char memory[PATH_BYTES];                                                                                          \
    int before = errno;                                                                                               \
    if (control == NULL)                                                                                              \
        return PROCEED;                                                                                               \
    enum verdict verdict = counted;                                                                                   \
    if (verdict != FAILED)                                                                                            \
        errno = before;                                                                                               \
    return verdict;

static enum verdict count_file(enum kind kind, int file, size_t size)
{
    KEEPING_ERRNO(count(kind, path_of(file, memory), size))
}

static enum verdict count_at(enum kind kind, int folder, const char *path)
{
    KEEPING_ERRNO(count(kind, path_at(folder, path, memory), 0))
}

/* ---- open */

#define OPEN_KIND(flags) ((flags) & (O_CREAT | O_TRUNC) || ((flags) & O_TMPFILE) == O_TMPFILE ? CREATE : OPEN)
#define MODE_OF(flags, mode)                                                                                          \
    mode_t mode = 0;                                                                                                  \
    if ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE) {                                                    \
        va_list rest;                                                                                                 \
        va_start(rest, flags);                                                                                        \
        mode = va_arg(rest, mode_t);                                                                                  \
        va_end(rest);                                                                                                 \
    }
#define DEFINE_OPEN(name)                                                                                             \
    int name(const char *path, int flags, ...)                                                                        \
    {                                                                                                                 \
        MODE_OF(flags, mode)                                                                                          \
        return count_at(OPEN_KIND(flags), AT_FDCWD, path) == FAILED ? -1 : REAL(name)(path, flags, mode);             \
    }
#define DEFINE_OPENAT(name)                                                                                           \
    int name(int folder, const char *path, int flags, ...)                                                            \
    {                                                                                                                 \
        MODE_OF(flags, mode)                                                                                          \
        return count_at(OPEN_KIND(flags), folder, path) == FAILED ? -1 : REAL(name)(folder, path, flags, mode);       \
    }
DEFINE_OPEN(open)
DEFINE_OPEN(open64)
DEFINE_OPENAT(openat)
DEFINE_OPENAT(openat64)

int creat(const char *path, mode_t mode) { return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

#define DEFINE_FOPEN(name)                                                                                            \
    FILE *name(const char *path, const char *how)                                                                     \
    {                                                                                                                 \
        return count_at(how[0] == 'r' ? OPEN : CREATE, AT_FDCWD, path) == FAILED ? NULL : REAL(name)(path, how);      \
    }
DEFINE_FOPEN(fopen)
DEFINE_FOPEN(fopen64)

/* ---- bytes */

#define BYTES(name, kind, file, size, whole, half)                                                                    \
    switch (count_file(kind, file, size)) {                                                                           \
    case FAILED: return -1;                                                                                           \
    case DO_HALF: return half;                                                                                        \
    case DO_HALF_AND_DIE: (void)!half; die(1); /* past the page cache half a page may be refused: none is written */  \
    default: return whole;                                                                                            \
    }

ssize_t read(int file, void *to, size_t n) { BYTES(read, READ, file, n, REAL(read)(file, to, n), REAL(read)(file, to, n / 2)) }
ssize_t write(int file, const void *from, size_t n)
{
    BYTES(write, WRITE, file, n, REAL(write)(file, from, n), REAL(write)(file, from, n / 2))
}
#define DEFINE_PREAD(name, offset)                                                                                    \
    ssize_t name(int file, void *to, size_t n, offset at)                                                             \
    {                                                                                                                 \
        BYTES(name, READ, file, n, REAL(name)(file, to, n, at), REAL(name)(file, to, n / 2, at))                      \
    }
#define DEFINE_PWRITE(name, offset)                                                                                   \
    ssize_t name(int file, const void *from, size_t n, offset at)                                                     \
    {                                                                                                                 \
        BYTES(name, WRITE, file, n, REAL(name)(file, from, n, at), REAL(name)(file, from, n / 2, at))                 \
    }
DEFINE_PREAD(pread, off_t)
DEFINE_PREAD(pread64, off64_t)
DEFINE_PWRITE(pwrite, off_t)
DEFINE_PWRITE(pwrite64, off64_t)

static size_t total(const struct iovec *pieces, int n)
{
    size_t sum = 0;
    for (int i = 0; i < n; i++)
        sum += pieces[i].iov_len;
    return sum;
}

/* Half of several pieces is half of the first one: a call may do as little as it likes. */
static struct iovec *half_of(const struct iovec *pieces, struct iovec *half)
{
    *half = (struct iovec){pieces[0].iov_base, pieces[0].iov_len / 2};
    return half;
}

#define DEFINE_VECTOR(name, kind, parameters, arguments)                                                              \
    ssize_t name(int file, const struct iovec *pieces, int n parameters)                                              \
    {                                                                                                                 \
        struct iovec half;                                                                                            \
        BYTES(name, kind, file, total(pieces, n), REAL(name)(file, pieces, n arguments),                              \
              REAL(name)(file, half_of(pieces, &half), 1 arguments))                                                  \
    }
#define AND ,
DEFINE_VECTOR(readv, READ, , )
DEFINE_VECTOR(writev, WRITE, , )
DEFINE_VECTOR(preadv, READ, AND off_t at, AND at)
DEFINE_VECTOR(preadv64, READ, AND off64_t at, AND at)
DEFINE_VECTOR(preadv2, READ, AND off_t at AND int flags, AND at AND flags)
DEFINE_VECTOR(preadv64v2, READ, AND off64_t at AND int flags, AND at AND flags)
DEFINE_VECTOR(pwritev, WRITE, AND off_t at, AND at)
DEFINE_VECTOR(pwritev64, WRITE, AND off64_t at, AND at)
DEFINE_VECTOR(pwritev2, WRITE, AND off_t at AND int flags, AND at AND flags)
DEFINE_VECTOR(pwritev64v2, WRITE, AND off64_t at AND int flags, AND at AND flags)

#define DEFINE_SENDFILE(name, offset)                                                                                 \
    ssize_t name(int to, int from, offset *at, size_t n)                                                              \
    {                                                                                                                 \
        BYTES(name, WRITE, to, n, REAL(name)(to, from, at, n), REAL(name)(to, from, at, n / 2))                       \
    }
DEFINE_SENDFILE(sendfile, off_t)
DEFINE_SENDFILE(sendfile64, off64_t)

ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *where, size_t n, unsigned flags)
{
    BYTES(copy_file_range, WRITE, to, n, REAL(copy_file_range)(from, at, to, where, n, flags),
          REAL(copy_file_range)(from, at, to, where, n / 2, flags))
}

/* ---- calls on an open file */

#define ON_FILE(result, name, kind, parameters, arguments, file)                                                      \
    result name parameters { return count_file(kind, file, 0) == FAILED ? -1 : REAL(name) arguments; }
ON_FILE(int, fsync, SYNC, (int file), (file), file)
ON_FILE(int, fdatasync, SYNC, (int file), (file), file)
ON_FILE(int, syncfs, SYNC, (int file), (file), file)
ON_FILE(int, ftruncate, TRUNCATE, (int file, off_t size), (file, size), file)
ON_FILE(int, ftruncate64, TRUNCATE, (int file, off64_t size), (file, size), file)
ON_FILE(int, fchmod, MODE, (int file, mode_t mode), (file, mode), file)
ON_FILE(int, fchown, MODE, (int file, uid_t user, gid_t group), (file, user, group), file)
ON_FILE(int, fstat, STAT, (int file, struct stat *into), (file, into), file)
ON_FILE(int, fstat64, STAT, (int file, struct stat64 *into), (file, into), file)

int flock(int file, int how)
{
    if (count_file(LOCK, file, 0) == FAILED)
        return -1;
    return control != NULL && control->lock_error < 0 ? 0 : REAL(flock)(file, how);
}

int ioctl(int file, unsigned long request, ...)
{
    va_list rest;
    va_start(rest, request);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    int clones = request == 0x40049409 || request == 0x4020940D; /* FICLONE, FICLONERANGE of linux/fs.h */
    return clones && count_file(COPY, file, 0) == FAILED ? -1 : REAL(ioctl)(file, request, argument);
}

/* ---- calls on names */

#define ON_NAME(name, kind, parameters, arguments, folder, path)                                                      \
    int name parameters { return count_at(kind, folder, path) == FAILED ? -1 : REAL(name) arguments; }
ON_NAME(rename, RENAME, (const char *a, const char *b), (a, b), AT_FDCWD, b)
ON_NAME(renameat, RENAME, (int f, const char *a, int g, const char *b), (f, a, g, b), g, b)
ON_NAME(renameat2, RENAME, (int f, const char *a, int g, const char *b, unsigned how), (f, a, g, b, how), g, b)
ON_NAME(link, LINK, (const char *a, const char *b), (a, b), AT_FDCWD, b)
ON_NAME(linkat, LINK, (int f, const char *a, int g, const char *b, int how), (f, a, g, b, how), g, b)
ON_NAME(symlink, LINK, (const char *a, const char *b), (a, b), AT_FDCWD, b)
ON_NAME(symlinkat, LINK, (const char *a, int g, const char *b), (a, g, b), g, b)
ON_NAME(unlink, UNLINK, (const char *path), (path), AT_FDCWD, path)
ON_NAME(unlinkat, (how & AT_REMOVEDIR ? RMDIR : UNLINK), (int f, const char *path, int how), (f, path, how), f, path)
ON_NAME(mkdir, MKDIR, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path)
ON_NAME(mkdirat, MKDIR, (int f, const char *path, mode_t mode), (f, path, mode), f, path)
ON_NAME(rmdir, RMDIR, (const char *path), (path), AT_FDCWD, path)
ON_NAME(truncate, TRUNCATE, (const char *path, off_t size), (path, size), AT_FDCWD, path)
ON_NAME(truncate64, TRUNCATE, (const char *path, off64_t size), (path, size), AT_FDCWD, path)
ON_NAME(chmod, MODE, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path)
ON_NAME(fchmodat, MODE, (int f, const char *path, mode_t mode, int how), (f, path, mode, how), f, path)
ON_NAME(chown, MODE, (const char *path, uid_t user, gid_t group), (path, user, group), AT_FDCWD, path)
ON_NAME(utimensat, MODE, (int f, const char *path, const struct timespec t[2], int how), (f, path, t, how), f, path)
ON_NAME(stat, STAT, (const char *path, struct stat *into), (path, into), AT_FDCWD, path)
ON_NAME(stat64, STAT, (const char *path, struct stat64 *into), (path, into), AT_FDCWD, path)
ON_NAME(lstat, STAT, (const char *path, struct stat *into), (path, into), AT_FDCWD, path)
ON_NAME(lstat64, STAT, (const char *path, struct stat64 *into), (path, into), AT_FDCWD, path)
ON_NAME(fstatat, STAT, (int f, const char *path, struct stat *into, int how), (f, path, into, how), f, path)
ON_NAME(fstatat64, STAT, (int f, const char *path, struct stat64 *into, int how), (f, path, into, how), f, path)
ON_NAME(access, STAT, (const char *path, int how), (path, how), AT_FDCWD, path)
ON_NAME(faccessat, STAT, (int f, const char *path, int mode, int how), (f, path, mode, how), f, path)
ON_NAME(statx, STAT, (int f, const char *path, int how, unsigned mask, struct statx *into), (f, path, how, mask, into), f, path)

/* ---- folders */

DIR *opendir(const char *path) { return count_at(LIST, AT_FDCWD, path) == FAILED ? NULL : REAL(opendir)(path); }
DIR *fdopendir(int file) { return count_file(LIST, file, 0) == FAILED ? NULL : REAL(fdopendir)(file); }

/* A listing that fails in the middle answers NULL like one that has ended: errno alone tells. */
struct dirent *readdir(DIR *folder) { return count_file(LIST, dirfd(folder), 0) == FAILED ? NULL : REAL(readdir)(folder); }
struct dirent64 *readdir64(DIR *folder)
{
    return count_file(LIST, dirfd(folder), 0) == FAILED ? NULL : REAL(readdir64)(folder);
}
