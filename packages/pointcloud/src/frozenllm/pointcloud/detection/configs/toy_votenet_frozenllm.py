# The small VoteNet with the bundled block over its seed tokens.
_base_ = "./toy_votenet.py"

model = dict(neck=dict(type="FrozenLLMNeck", dim=64, llm=dict(source="bundled"), residual=False))
