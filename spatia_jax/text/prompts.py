"""What the released setting adds to a user's prompt (spec 2.5)."""

SUFFIX = " 4K, realistic, high quality, HDR."

NEGATIVE_PROMPT = (
    "场景切换，镜头切换，画面渐黑，画面渐亮，最差质量，低质量，普通质量，节目横幅，JPEG压缩残留，噪点，模糊，"
    "细节缺失，马赛克，水印，文字，签名，标志，丑陋，畸形，毁容，人体结构错误，多余的肢体，缺少的肢体，手指融合，"
    "画得不好的手部，画得不好的脸部，表情僵硬，构图杂乱，元素不一致，空画面，透视错误，比例错误，物体融化，"
    "物体互相穿插，物体悬浮，光照平淡，光照不自然，色彩单调，色彩怪异，色彩刺眼，画面发灰"
)
"""Cuts and fades, low quality and its traces, writing on the picture, wrong bodies, wrong space, dull or odd light."""
