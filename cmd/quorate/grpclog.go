package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"time"

	"quorate/internal/logging"

	"google.golang.org/grpc/grpclog"
)

// takeOverLogs makes what libraries log on their own part of the log: gRPC's warnings and
// errors (everything at level debug) and the standard logger's lines.
func takeOverLogs(log *slog.Logger) {
	slog.SetDefault(log)
	l := grpcLogger{log: log, least: slog.LevelWarn}
	if log.Enabled(context.Background(), slog.LevelDebug) {
		l.least = slog.LevelInfo
	}
	grpclog.SetLoggerV2(l)
}

// grpcLogger implements grpclog.LoggerV2.
type grpcLogger struct {
	log   *slog.Logger
	least slog.Level
}

func (l grpcLogger) write(level slog.Level, text string) {
	ctx := context.Background()
	if level < l.least || !l.log.Enabled(ctx, level) {
		return
	}
	var pc [1]uintptr
	runtime.Callers(4, pc[:]) // Callers, write, the method and package grpclog
	r := slog.NewRecord(time.Now(), level, strings.TrimSuffix(text, "\n"), pc[0])
	// Nobody could be told that the log cannot be written.
	_ = l.log.Handler().Handle(ctx, r)
}

func (l grpcLogger) Info(args ...any)               { l.write(slog.LevelInfo, fmt.Sprint(args...)) }
func (l grpcLogger) Infoln(args ...any)             { l.write(slog.LevelInfo, fmt.Sprintln(args...)) }
func (l grpcLogger) Infof(f string, args ...any)    { l.write(slog.LevelInfo, fmt.Sprintf(f, args...)) }
func (l grpcLogger) Warning(args ...any)            { l.write(slog.LevelWarn, fmt.Sprint(args...)) }
func (l grpcLogger) Warningln(args ...any)          { l.write(slog.LevelWarn, fmt.Sprintln(args...)) }
func (l grpcLogger) Warningf(f string, args ...any) { l.write(slog.LevelWarn, fmt.Sprintf(f, args...)) }
func (l grpcLogger) Error(args ...any)              { l.write(slog.LevelError, fmt.Sprint(args...)) }
func (l grpcLogger) Errorln(args ...any)            { l.write(slog.LevelError, fmt.Sprintln(args...)) }
func (l grpcLogger) Errorf(f string, args ...any)   { l.write(slog.LevelError, fmt.Sprintf(f, args...)) }
func (l grpcLogger) Fatal(args ...any)              { l.fatal(fmt.Sprint(args...)) }
func (l grpcLogger) Fatalln(args ...any)            { l.fatal(fmt.Sprintln(args...)) }
func (l grpcLogger) Fatalf(f string, args ...any)   { l.fatal(fmt.Sprintf(f, args...)) }

// V reports whether gRPC should take the trouble to write details of that verbosity.
func (l grpcLogger) V(v int) bool { return v == 0 || l.least < slog.LevelWarn }

func (l grpcLogger) fatal(text string) {
	l.write(logging.LevelFatal, text)
	os.Exit(exitFailed)
}
