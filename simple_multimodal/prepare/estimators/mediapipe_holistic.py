"""
Estimate poses with MediaPipe Holistic: body, face and both hands of one person.

Needs `mediapipe` below 0.10.30, whose wheel holds the models (`bash run_scripts/setup_pose.sh`). Components and points
are those that pose-format writes for this estimator.
"""

import mediapipe
import numpy as np

holistic = mediapipe.solutions.holistic

NUM_FACE_POINTS = 468


def component(name, points, limbs):
    """Describe a part of the skeleton."""
    pairs = sorted((int(start), int(end)) for start, end in limbs)
    return {"name": name, "format": "XYZC", "points": points, "limbs": pairs}


BODY = [point.name for point in holistic.PoseLandmark], holistic.POSE_CONNECTIONS
HAND = [point.name for point in holistic.HandLandmark], holistic.HAND_CONNECTIONS
FACE = [str(number) for number in range(NUM_FACE_POINTS)], holistic.FACEMESH_TESSELATION


class Estimator:
    """MediaPipe Holistic, which follows a person from frame to frame."""

    packages = ("mediapipe",)
    settings = {
        "static_image_mode": False,
        "model_complexity": 1,  # the wheel does not hold the models of the others
        "smooth_landmarks": True,
        "refine_face_landmarks": False,
        "min_detection_confidence": 0.5,
        "min_tracking_confidence": 0.5,
    }
    components = [
        component("POSE_LANDMARKS", *BODY),
        component("FACE_LANDMARKS", *FACE),
        component("LEFT_HAND_LANDMARKS", *HAND),
        component("RIGHT_HAND_LANDMARKS", *HAND),
        component("POSE_WORLD_LANDMARKS", *BODY),
    ]

    def estimate(self, frames):
        """
        Estimate the poses of a clip.

        x and y are in pixels, z is in MediaPipe's unit, which is about the width of the frame. The confidence of
        points of the body is their visibility, that of others 1. World points, in metres, are multiplied by width and
        height, as pose-format does.

        Args:
            frames (iterator of `np.ndarray` of shape `(height, width, 3)`): Frames, RGB, `uint8`.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: Points of shape `(num_frames, 1, 576, 3)`, and confidences of shape
            `(num_frames, 1, 576)`; 0 where a point is missing.
        """
        poses = []
        with holistic.Holistic(**self.settings) as model:
            for frame in frames:
                found = model.process(frame)
                body, world = found.pose_landmarks, found.pose_world_landmarks
                parts = [
                    landmarks(body, len(BODY[0]), has_visibility=True),
                    landmarks(found.face_landmarks, NUM_FACE_POINTS),
                    landmarks(found.left_hand_landmarks, len(HAND[0])),
                    landmarks(found.right_hand_landmarks, len(HAND[0])),
                    landmarks(world, len(BODY[0]), has_visibility=True),
                ]
                height, width, _ = frame.shape
                poses.append((np.concatenate(parts) * [width, height, 1, 1]).astype(np.float32))
        values = np.stack(poses)[:, None]  # (num_frames, people, points, 4)
        return values[..., :3], values[..., 3]


def landmarks(found, num_points, has_visibility=False):
    """Return points of a part, `(num_points, 4)`: x, y, z and confidence; zeros if the part was not found."""
    if found is None:
        return np.zeros((num_points, 4))
    return np.array([[p.x, p.y, p.z, p.visibility if has_visibility else 1] for p in found.landmark])
