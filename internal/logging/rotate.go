package logging

import (
	"encoding/json"
	"errors"
	"fmt"

	"gopkg.in/natefinch/lumberjack.v2"
)

// DefaultRotation is --log-rotation-config-json's default: files of 100 MB, kept for ever.
const DefaultRotation = `{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}`

// parseRotation reads --log-rotation-config-json.
func parseRotation(text string) (*lumberjack.Logger, error) {
	l := &lumberjack.Logger{}
	err := json.Unmarshal([]byte(text), l)
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case err == nil:
		return l, nil
	case errors.As(err, &syntax):
		return nil, fmt.Errorf("improperly formatted log rotation config: %w", err)
	case errors.As(err, &kind):
		return nil, fmt.Errorf("invalid log rotation config: %w", err)
	}
	return nil, fmt.Errorf("fail to unmarshal log rotation config: %w", err)
}
