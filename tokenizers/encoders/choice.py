"""The encoders to choose from."""

from rebus.tokenizers.encoders.one_branch import OneBranchEncoderConfig
from rebus.tokenizers.encoders.two_branch import TwoBranchEncoderConfig

EncoderConfig = OneBranchEncoderConfig | TwoBranchEncoderConfig
