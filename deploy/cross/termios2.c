/* Preloaded under qemu-user up to 10.1, which does not know the termios2 requests with which serial ports are opened: turns
 * them into the older ones. Those have no place for any speed but the named ones, and a pty has none at all: each speed reads
 * as 115200 baud. For tests alone. */
#include <asm/termbits.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

_Static_assert(sizeof(struct termios) <= sizeof(struct termios2), "termios2 begins with all of termios");

static int get(int fd, struct termios2 *settings)
{
	struct termios old;
	if (syscall(SYS_ioctl, fd, TCGETS, &old) != 0)
		return -1;
	memcpy(settings, &old, sizeof old);
	settings->c_ispeed = settings->c_ospeed = 115200;
	return 0;
}

static int set(int fd, unsigned request, const struct termios2 *settings)
{
	struct termios old;
	memcpy(&old, settings, sizeof old);
	if ((old.c_cflag & CBAUD) == BOTHER)
		old.c_cflag = (old.c_cflag & ~CBAUD) | B115200;
	return syscall(SYS_ioctl, fd, request, &old);
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list arguments;
	va_start(arguments, request);
	void *argument = va_arg(arguments, void *);
	va_end(arguments);
	/* Some callers give the request as a negative int. */
	switch ((unsigned)request) {
	case TCGETS2: return get(fd, argument);
	case TCSETS2: return set(fd, TCSETS, argument);
	case TCSETSW2: return set(fd, TCSETSW, argument);
	case TCSETSF2: return set(fd, TCSETSF, argument);
	default: return syscall(SYS_ioctl, fd, request, argument);
	}
}
