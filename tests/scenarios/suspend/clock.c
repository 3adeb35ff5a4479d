/* Loaded into a program, shows it a host that was suspended: the clocks that go on in suspend are ahead by the seconds in
 * the file SLEPT_FILE. The program itself is stopped and continued. When it is continued, what the kernel does at the end
 * of a suspend is done here: timers on such a clock whose time has passed expire, and timers on the wall clock that are
 * cancelled when it is set are cancelled. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum kind { OTHER, BOOT, WALL };
enum { DESCRIPTORS = 1024 };

static volatile const int64_t *slept;
static struct {
    enum kind kind;
    struct itimerspec at;
} timers[DESCRIPTORS];

static enum kind kind_of(int fd) { return fd >= 0 && fd < DESCRIPTORS ? timers[fd].kind : OTHER; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    long done = syscall(SYS_clock_gettime, clock, now);
    if (done == 0 && slept && (clock == CLOCK_BOOTTIME || clock == CLOCK_REALTIME)) now->tv_sec += *slept;
    return (int)done;
}

/* A timer on the wall clock is an eventfd, which the program finds ready when the timer is cancelled. */
int timerfd_create(clockid_t clock, int flags) {
    int fd = clock == CLOCK_REALTIME ? eventfd(0, flags) : (int)syscall(SYS_timerfd_create, clock, flags);
    if (fd >= 0 && fd < DESCRIPTORS) {
        timers[fd].kind = clock == CLOCK_REALTIME ? WALL : clock == CLOCK_BOOTTIME ? BOOT : OTHER;
        timers[fd].at = (struct itimerspec){0};
    }
    return fd;
}

/* The kernel's clock is behind by what the host has slept. */
static long arm(int fd, struct itimerspec at, struct itimerspec *old) {
    if (at.it_value.tv_sec || at.it_value.tv_nsec) {
        at.it_value.tv_sec -= *slept;
        if (at.it_value.tv_sec < 0) at.it_value = (struct timespec){.tv_nsec = 1};
    }
    return syscall(SYS_timerfd_settime, fd, TFD_TIMER_ABSTIME, &at, old);
}

int timerfd_settime(int fd, int flags, const struct itimerspec *at, struct itimerspec *old) {
    if (kind_of(fd) == WALL) return 0;
    if (kind_of(fd) != BOOT || !slept) return (int)syscall(SYS_timerfd_settime, fd, flags, at, old);
    timers[fd].at = flags & TFD_TIMER_ABSTIME ? *at : (struct itimerspec){0};
    if (flags & TFD_TIMER_ABSTIME) return (int)arm(fd, *at, old);
    return (int)syscall(SYS_timerfd_settime, fd, flags, at, old);
}

ssize_t read(int fd, void *into, size_t len) {
    ssize_t got = syscall(SYS_read, fd, into, len);
    if (kind_of(fd) != WALL || got < 0) return got;
    errno = ECANCELED;
    return -1;
}

static void resume(int signal) {
    int before = errno;
    (void)signal;
    for (int fd = 0; fd < DESCRIPTORS; fd++) {
        struct itimerspec at = timers[fd].at;
        uint64_t one = 1;
        if (timers[fd].kind == BOOT && (at.it_value.tv_sec || at.it_value.tv_nsec)) arm(fd, at, NULL);
        if (timers[fd].kind == WALL && write(fd, &one, sizeof one) < 0) break;
    }
    errno = before;
}

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("SLEPT_FILE");
    int fd = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    void *map = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *slept, PROT_READ, MAP_SHARED, fd, 0);
    struct sigaction action = {.sa_handler = resume, .sa_flags = SA_RESTART};
    if (fd >= 0) close(fd);
    if (map == MAP_FAILED) return;
    slept = map;
    sigaction(SIGCONT, &action, NULL);
}
