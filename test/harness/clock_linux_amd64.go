package harness

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// A process reads the clock by calling a function of the vDSO, code that the kernel maps into
// it. A server that is started with a clock of its own gets another function in its place,
// before its first instruction runs: the system call, and then an addition to the seconds of
// the wall clock. Stepping the clock changes what is added. Time that is measured, by the
// monotonic clock, goes on as it is.
var ownClock = []byte{
	0xb8, 0xe4, 0, 0, 0, // mov eax, clock_gettime
	0x0f, 0x05, // syscall
	0x85, 0xc0, // test eax, eax
	0x75, 11, // jnz end
	0x85, 0xff, // test edi, edi   CLOCK_REALTIME is 0
	0x75, 7, // jnz end
	0x48, 0x81, 0x06, 0, 0, 0, 0, // add qword [rsi], step
	0xc3, // end: ret
}

// ownClockStep is where in ownClock the step is, in seconds.
const ownClockStep = 18

// clock is where a process has its own.
type clock struct{ address int64 }

// startWithClock is cmd.Start for a process with a clock of its own. If it cannot have one,
// there is an error and no process.
func startWithClock(cmd *exec.Cmd) (c *clock, err error) {
	// A traced process stops before its first instruction, and is its tracer's, a thread's.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr.Ptrace = true
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			// Its end is no news.
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}()
	pid := cmd.Process.Pid
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil || !status.Stopped() {
		return nil, fmt.Errorf("the new process did not stop: %v, %w", status, err)
	}
	c, err = installClock(pid)
	return c, errors.Join(err, syscall.PtraceDetach(pid))
}

func installClock(pid int) (*clock, error) {
	from, to, err := findVDSO(pid)
	if err != nil {
		return nil, err
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	image := make([]byte, to-from)
	if _, err := mem.ReadAt(image, from); err != nil {
		return nil, fmt.Errorf("read the vDSO: %w", err)
	}
	file, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, fmt.Errorf("read the vDSO: %w", err)
	}
	symbols, err := file.DynamicSymbols()
	if err != nil {
		return nil, fmt.Errorf("read the vDSO: %w", err)
	}
	for _, s := range symbols {
		if s.Name == "__vdso_clock_gettime" && s.Size >= uint64(len(ownClock)) {
			c := &clock{from + int64(s.Value)}
			_, err := mem.WriteAt(ownClock, c.address)
			return c, err
		}
	}
	return nil, errors.New("the vDSO has no place for another clock")
}

func findVDSO(pid int) (from, to int64, err error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(maps)) {
		if strings.HasSuffix(line, "[vdso]\n") {
			_, err := fmt.Sscanf(line, "%x-%x", &from, &to)
			return from, to, err
		}
	}
	return 0, 0, errors.New("the process has no vDSO")
}

// set makes the clock differ from the machine's by so many seconds. The process must be
// stopped meanwhile.
func (c *clock) set(pid int, seconds int32) error {
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = mem.WriteAt(binary.LittleEndian.AppendUint32(nil, uint32(seconds)), c.address+ownClockStep)
	return errors.Join(err, mem.Close())
}

// SetClock makes the wall clock of the member's process differ from the machine's by so many
// seconds from now on, until the process ends.
func (m *Member) SetClock(seconds int32) error {
	if m.Server.clock == nil {
		return ErrNoFault
	}
	pid := m.Server.PID()
	// No thread must be within the instruction that changes.
	if err := m.Server.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	err := awaitStop(pid)
	if err == nil {
		err = m.Server.clock.set(pid, seconds)
	}
	if !m.paused {
		err = errors.Join(err, m.Server.cmd.Process.Signal(syscall.SIGCONT))
	}
	return err
}

// awaitStop returns once all threads of a process have stopped.
func awaitStop(pid int) error {
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			return err
		}
		running := false
		for _, task := range tasks {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/stat", pid, task.Name()))
			if errors.Is(err, os.ErrNotExist) {
				continue // it has ended
			}
			if err != nil {
				return err
			}
			state := stat[bytes.LastIndexByte(stat, ')')+2]
			running = running || state != 'T' && state != 't'
		}
		if !running {
			return nil
		}
	}
	return errors.New("the process does not stop")
}
