package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"quorate"
	"quorate/internal/config"
	"quorate/internal/logging"
	"quorate/internal/node"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Exit statuses, which are etcd's.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// sameSignal is for how long after the signal to stop further ones are taken for the same: some
// programs (timeout, some supervisors) send one to the process and one to its group.
const sameSignal = time.Second

// serve runs a member until it is told to stop or cannot go on. args is the command line
// as it was given, flags what follows "serve".
func serve(args, flags, environ []string) int {
	parsed, err := config.Parse(flags, environ)
	var usage *config.UsageError
	switch {
	case errors.As(err, &usage):
		fmt.Fprintf(os.Stderr, "%v\nRun with --help for all flags.\n", err)
		return exitUsage
	case err == nil && parsed.Help:
		fmt.Print(config.Usage())
		return exitOK
	case err == nil && parsed.Version:
		fmt.Print(versionText())
		return exitOK
	}

	// What is wrong with the configuration is logged, in the way that it asks for if that
	// much of it is right. What is wrong with that is what Parse says already, but for files
	// that cannot be opened.
	var options logging.Options
	if parsed != nil {
		options = parsed.Log
	}
	log, files, logErr := logging.New(options)
	if logErr != nil {
		log, files, _ = logging.New(logging.Options{}) // stderr, which cannot fail
		err = cmp.Or(err, logErr)
	}
	defer closeLog(files)
	if parsed != nil {
		parsed.LogNotes(log)
	}
	log.Info("Running: ", "args", args)
	if err != nil {
		log.Warn("failed to verify flags", "error", err)
		if errors.Is(err, config.ErrAdvertiseUnset) {
			log.Warn("advertise client URLs are not set", "error", err)
		}
		return exitFailed
	}
	takeOverLogs(log)
	tuneGC()
	return runServer(parsed.Config, log)
}

// runServer starts the member and waits for its end.
func runServer(cfg *config.Config, log *slog.Logger) int {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)

	// A signal during the start ends it: the data is as safe then as at any other time.
	ctx, cancel := context.WithCancelCause(context.Background())
	started := make(chan struct{})
	var early os.Signal
	waiting := make(chan struct{})
	go func() {
		defer close(waiting)
		select {
		case early = <-signals:
			log.Info("received signal; shutting down", "signal", early.String())
			cancel(errors.New("told to stop"))
		case <-started:
		}
	}()
	server, err := quorate.Start(ctx, cfg, log)
	close(started)
	<-waiting
	if err != nil {
		if early != nil {
			return dieOf(early)
		}
		log.Log(context.Background(), logging.LevelFatal, "failed to start", "error", err)
		return exitFailed
	}
	notifySystemd(log, daemon.SdNotifyReady)

	if early == nil {
		select {
		case early = <-signals:
			log.Info("received signal; shutting down", "signal", early.String())
		case err := <-server.Err():
			if errors.Is(err, node.ErrRemoved) {
				// That is no failure: it is what somebody asked the cluster for.
				log.Warn("server error", "error", err)
				log.Warn("data-dir used by this member must be removed", "data-dir", cfg.DataDir)
				break
			}
			log.Log(context.Background(), logging.LevelFatal, "the server cannot go on", "error", err)
			// Nothing is lost: what was acknowledged is on disk. Closing in order could
			// wait for the very thing that failed.
			return exitFailed
		}
	}
	notifySystemd(log, daemon.SdNotifyStopping)
	go func() {
		for begin := time.Now(); ; {
			<-signals
			if time.Since(begin) >= sameSignal {
				log.Warn("received a signal while stopping; exiting at once")
				os.Exit(exitFailed)
			}
		}
	}()
	if err := server.Close(); err != nil {
		log.Error("failed to stop in order", "error", err)
		return exitFailed
	}
	if early == nil {
		return exitOK
	}
	return dieOf(early)
}

// dieOf ends the process the way the signal would have, so that whoever started it sees
// why it ended (status 143 for SIGTERM). Process 1 of a container ignores signals that
// it sends to itself and exits with 0, as etcd does.
func dieOf(s os.Signal) int {
	sys, ok := s.(syscall.Signal)
	if !ok || os.Getpid() == 1 {
		return exitOK
	}
	signal.Reset(sys)
	if err := syscall.Kill(os.Getpid(), sys); err != nil {
		return exitFailed
	}
	select {} // the signal is on its way
}

func notifySystemd(log *slog.Logger, state string) {
	// Not being under systemd is no error: sent is false then.
	if sent, err := daemon.SdNotify(false, state); err != nil {
		log.Error("failed to notify systemd", "state", state, "error", err)
	} else if sent {
		log.Info("successfully notified init daemon", "state", state)
	}
}

func closeLog(c io.Closer) {
	if err := c.Close(); err != nil {
		fmt.Fprintf(os.Stderr, "close log: %v\n", err)
	}
}
